"use strict";
// Draws the figures from the specifications in #data. A choice of a control is a set of changes to
// its figure's specification, as itt_composer/report/figures.py makes them for print.

const data = JSON.parse(document.getElementById("data").textContent);
const isDark = matchMedia("(prefers-color-scheme: dark)");
const hasTouch = matchMedia("(pointer: coarse)");
const CELL = 120;          // least width of a panel
const LETTER = 6.6;        // pixels of a legend's letter
const HEIGHT = 400;
const AXES = ["x", "y", "scale"];  // controls that change what a place on the chart means

function unpack({count, columns}) {
  const records = Array.from({length: count}, () => ({}));
  for (const [name, column] of Object.entries(columns)) {
    const value = column.texts ? i => column.texts[column.places[i]] : i => column.values[i];
    records.forEach((record, i) => { record[name] = value(i); });
  }
  return records;
}

function setPlace(part, place, value) {
  if (part === null || typeof part !== "object") return;
  const [name, ...rest] = place;
  const names = Array.isArray(part) && name === "*" ? part.keys() : [name];
  for (const key of names) {
    if (!rest.length) part[key] = value;
    else setPlace(part[key], rest, value);
  }
}

function changed(spec, changes) {
  for (const [place, value] of Object.entries(changes)) setPlace(spec, place.split("."), value);
  return spec;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function select(label, name, options, onChange) {
  const choices = options.map((text, i) => element("option", {value: i}, text));
  const box = element("select", {name}, ...choices);
  box.addEventListener("change", () => onChange(Number(box.value)));
  return element("label", {}, label, box);
}

function domains(part, found = []) {
  if (part && typeof part === "object") {
    for (const [key, value] of Object.entries(part)) {
      if (key === "domain" && Array.isArray(value)) found.push(value.filter(one => typeof one === "string"));
      else domains(value, found);
    }
  }
  return found;
}

function coloured(spec) {
  let text = JSON.stringify(spec);
  if (isDark.matches) for (const [light, dark] of Object.entries(data.dark)) text = text.replaceAll(`"${light}"`, `"${dark}"`);
  return JSON.parse(text);
}

function configFor(spec, width) {
  const config = structuredClone(data.config[isDark.matches ? "dark" : "light"]);
  const longest = Math.max(1, ...domains(spec).flat().map(text => text.length));
  config.legend.columns = Math.max(1, Math.floor(width / (longest * LETTER + 46)));
  config.legend.labelLimit = width - 60;
  config.legend.layout = {top: {anchor: "start", direction: width < 640 ? "vertical" : "horizontal", margin: 16}};
  return config;
}

class Chart {
  constructor(section, figure) {
    this.figure = figure;
    this.place = section.querySelector(".chart");
    this.records = Object.fromEntries(Object.entries(figure.data).map(([name, rows]) => [name, unpack(rows)]));
    this.chosen = figure.controls.map(() => 0);
    const controls = section.querySelector(".controls");
    figure.controls.forEach((control, i) => {
      const labels = control.options.map(option => option.label);
      controls.append(select(control.label, control.name, labels, choice => {
        this.chosen[i] = choice;
        return this.draw(control.name);
      }));
    });
  }

  specification(width, cell) {
    let spec = structuredClone(this.figure.spec);
    this.figure.controls.forEach((control, i) => changed(spec, control.options[this.chosen[i]].changes));
    spec = coloured(spec);
    if (spec.facet) {
      const fitting = Math.max(1, Math.floor((width - 50) / (CELL + 20)));
      spec.columns = Math.min(spec.columns, fitting);
      // Rows that are full: below a gap Vega-Lite draws an axis of its own.
      const panels = spec.facet.sort?.length ?? 0;
      if (panels <= 4) while (panels % spec.columns) spec.columns -= 1;
      spec.spec.width = cell ?? Math.floor((width - 64 - 20 * (spec.columns - 1)) / spec.columns);
      if (spec.columns === 1 && typeof spec.spec.height === "number") spec.spec.height = Math.max(spec.spec.height, 200);
    } else {
      spec.width = "container";
      spec.height = width < 640 ? 300 : HEIGHT;
      spec.autosize = {type: "fit-x", contains: "padding"};
    }
    // What was clicked in the legend stays, and where the chart was zoomed to.
    for (const param of spec.params ?? []) param.value = this.kept[param.name] ?? param.value;
    // A finger on a chart scrolls the page.
    if (hasTouch.matches && spec.params) spec.params = spec.params.filter(param => param.name !== "zoom");
    spec.datasets = this.records;
    spec.description = this.figure.description;
    return spec;
  }

  store(name) {
    try {
      return this.view.view.data(`${name}_store`);
    } catch {
      return null;  // not drawn yet, or a figure without it
    }
  }

  keep(control) {
    this.kept = {};
    const highlighted = this.store("highlight"), [zoomed] = this.store("zoom") ?? [];
    if (highlighted && control !== "models") {
      this.kept.highlight = highlighted.map(one => ({experiment: one.values[0]}));
    }
    if (zoomed && !AXES.includes(control)) {
      this.kept.zoom = Object.fromEntries(zoomed.fields.map(({channel}, i) => [channel, zoomed.values[i]]));
    }
  }

  async draw(control = null) {
    this.keep(control);
    const width = this.place.clientWidth;
    this.width = width;
    try {
      await this.embed(this.specification(width), width);
      const spec = this.view.spec;
      const wanted = Number(this.place.querySelector("svg").getAttribute("width"));
      if (spec.facet && wanted > width) {
        const cell = spec.spec.width - Math.ceil((wanted - width) / spec.columns) - 2;
        await this.embed(this.specification(width, Math.max(60, cell)), width);
      }
    } catch (error) {
      console.error(`${this.figure.name}: ${error}`);
      this.place.replaceChildren(element("p", {class: "failed"}, `This figure cannot be drawn: ${error}`));
    }
  }

  async embed(spec, width) {
    this.view?.finalize();
    this.view = await vegaEmbed(this.place, spec, {
      renderer: "svg",
      mode: "vega-lite",
      config: configFor(spec, width),
      actions: {export: true, source: false, compiled: false, editor: false},
      downloadFileName: this.figure.name,
      tooltip: {theme: isDark.matches ? "dark" : "light"},
    });
  }
}

// The routing map.
class RoutingMap {
  constructor(section, maps) {
    this.maps = maps;
    this.controls = section.querySelector(".controls");
    this.scale = section.querySelector(".scale");
    this.text = section.querySelector(".text");
    this.card = section.querySelector(".card");
    this.chosen = {model: 0, text: 0, layer: "all", step: "all"};
    document.body.append(this.card);
    this.text.addEventListener("mouseover", event => this.show(event.target.closest(".token")));
    this.text.addEventListener("mouseleave", () => this.hide());
    this.text.addEventListener("focusin", event => this.show(event.target.closest(".token")));
    this.text.addEventListener("focusout", () => this.hide());
    this.text.addEventListener("click", event => event.target.closest(".token")?.focus());
    this.text.addEventListener("scroll", () => this.hide());
    this.text.addEventListener("keydown", event => this.move(event));
    this.build();
  }

  get shown() { return this.maps[this.chosen.model].texts[this.chosen.text]; }

  distinct(key) { return [...new Set(this.shown.steps.map(step => step[key]))].sort((a, b) => a - b); }

  build() {
    const model = this.maps[this.chosen.model];
    const texts = model.texts.map((text, i) => text.name || `text ${i + 1}`);
    this.layers = ["all", ...this.distinct("layer")];
    this.steps = ["all", ...this.distinct("step")];
    const controls = [];
    const add = (label, name, options, values, rebuild) => {
      const control = select(label, name, options, i => {
        this.chosen[name] = values[i];
        if (rebuild) {
          if (name === "model") this.chosen.text = 0;
          this.build();
        } else this.shade();
      });
      const place = values.indexOf(this.chosen[name]);
      control.querySelector("select").value = String(Math.max(0, place));
      this.chosen[name] = values[Math.max(0, place)];
      controls.push(control);
    };
    const keys = list => [...list.keys()];
    add("Model", "model", this.maps.map(one => one.name), keys(this.maps), true);
    add("Text", "text", texts, keys(texts), true);
    add("Layer", "layer", this.layers.map(String), this.layers, false);
    add("Step", "step", this.steps.map(String), this.steps, false);
    const focused = this.controls.contains(document.activeElement) ? document.activeElement.name : null;
    this.controls.replaceChildren(...controls);
    if (focused) this.controls.querySelector(`[name=${focused}]`)?.focus();
    this.text.replaceChildren(...this.shown.tokens.map((token, i) => this.token(token, i)));
    this.text.scrollTop = 0;
    this.shade();
  }

  token(token, i) {
    const made = element("span", {class: "token", tabindex: i ? -1 : 0, "data-token": i});
    for (const part of token.split(/(\n|\t)/)) {
      if (part === "\n") made.append(element("span", {class: "mark"}, "⏎"), "\n");
      else if (part === "\t") made.append(element("span", {class: "mark"}, "⇥"), "\t");
      else made.append(part);
    }
    if (!token) made.append(element("span", {class: "mark"}, "∅"));
    return made;
  }

  seen() {
    const {layer, step} = this.chosen;
    return this.shown.steps.filter(one =>
      (layer === "all" || one.layer === layer) && (step === "all" || one.step === step));
  }

  shade() {
    const seen = this.seen();
    const single = seen.length === 1 && seen[0].weights.length ? seen[0] : null;
    const most = seen.length;
    const ofWeight = weight => 0.14 + 0.5 * Math.min(1, weight);
    const ofCount = count => 0.62 * count / Math.max(1, most);
    [...this.text.children].forEach((token, i) => {
      const taken = seen.reduce((sum, one) => sum + one.selected[i], 0);
      const weight = single && taken ? Math.abs(single.weights[i] ?? 0) : null;
      token.style.setProperty("--depth", (weight === null ? ofCount(taken) : ofWeight(weight)).toFixed(3));
      token.dataset.value = weight ?? taken;
    });
    const samples = single
      ? [[0, "not taken"], [ofWeight(0), "weight 0"], [ofWeight(0.5), "½"], [ofWeight(1), "1"]]
      : this.samples(most).map(count => [ofCount(count), String(count)]);
    const words = single ? `Layer ${single.layer}, step ${single.step}:` : `Extra steps taken, of ${most}:`;
    this.scale.replaceChildren(words, ...samples.map(([alpha, label]) => {
      const sample = element("i", {}, label);
      sample.style.background = `rgba(var(--shade), ${alpha.toFixed(3)})`;
      return sample;
    }));
    this.hide();
  }

  samples(most) {
    const step = Math.max(1, Math.ceil(most / 6));
    const found = [];
    for (let value = 0; value < most; value += step) found.push(value);
    return [...found, most];
  }

  show(token) {
    if (!token) return;
    const i = Number(token.dataset.token);
    const {tokens, steps} = this.shown;
    const taken = steps.reduce((sum, one) => sum + one.selected[i], 0);
    const spoken = tokens[i].replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
    const layers = this.distinct("layer"), numbers = this.distinct("step");
    const head = element("tr", {}, element("th", {}, ""), ...numbers.map(step => element("th", {scope: "col"}, `step ${step}`)));
    const rows = layers.map(layer => element("tr", {}, element("th", {scope: "row"}, `layer ${layer}`),
      ...numbers.map(step => {
        const one = steps.find(each => each.layer === layer && each.step === step);
        if (!one) return element("td", {}, "");
        const weight = one.weights[i];
        const label = weight == null ? (one.selected[i] ? "taken" : "–") : weight.toFixed(2);
        return element("td", one.selected[i] ? {class: "taken"} : {}, label);
      })));
    this.card.replaceChildren(
      element("p", {}, element("strong", {}, `“${spoken}”`), ` took ${taken} of ${steps.length} extra steps; weights, those taken marked:`),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
    this.card.hidden = false;
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const {width, height} = this.card.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 8 + height < innerHeight;
    this.card.style.left = `${left + scrollX}px`;
    this.card.style.top = `${(below ? box.bottom + 8 : box.top - height - 8) + scrollY}px`;
  }

  hide() { this.card.hidden = true; }

  move(event) {
    const steps = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10};
    if (event.key === "Escape") this.hide();
    if (!(event.key in steps)) return;
    const token = event.target.closest(".token");
    if (!token) return;
    event.preventDefault();
    const last = this.text.children.length - 1;
    const next = Math.min(last, Math.max(0, Number(token.dataset.token) + steps[event.key]));
    token.tabIndex = -1;
    this.text.children[next].tabIndex = 0;
    this.text.children[next].focus();
  }
}

async function main() {
  const charts = [...document.querySelectorAll("section.figure")].map(
    section => new Chart(section, data.figures[Number(section.dataset.figure)]));
  const map = document.getElementById("routing_map");
  if (map) window.routingMap = new RoutingMap(map, data.maps);
  const drawAll = async () => { for (const chart of charts) await chart.draw(); };
  await drawAll();
  isDark.addEventListener("change", () => drawAll());
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      for (const chart of charts) if (chart.place.clientWidth !== chart.width) await chart.draw();
    }, 200);
  });
  window.charts = charts;
  document.body.dataset.drawn = "true";
}

main();
