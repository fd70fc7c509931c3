"""A naive Inner Thinking Transformer: Python loops over tokens, one vector at a time.

Written from the paper's equations, on nothing of `itt_composer`: it reads a state dict with
LLaMA's parameter names and a handful of settings. Slow, and meant to be read beside the paper.
"""

import math
from types import SimpleNamespace

import torch


def logits(parameters, settings: SimpleNamespace, input_ids):
    """Next-token logits of one sequence: input_ids (S,) → (S, vocabulary)."""
    states = [parameters["model.embed_tokens.weight"][token] for token in input_ids.tolist()]
    for index in range(settings.num_hidden_layers):
        prefix = f"model.layers.{index}."
        layer = {
            name.removeprefix(prefix): value
            for name, value in parameters.items()
            if name.startswith(prefix)
        }
        if index in settings.thinking_layers:
            states = thinking_layer(layer, settings, states)
        else:
            states = decoder_layer(layer, settings, states, list(range(len(states))))
    norm = parameters["model.norm.weight"]
    output = parameters["lm_head.weight"]
    return torch.stack([output @ rms_norm(state, norm, settings) for state in states])


def thinking_layer(layer, settings, inputs):
    """X → Y[T-1], section 3 of the paper."""
    everyone = list(range(len(inputs)))
    encoding = layer.get("step_encoding")

    def phi(step):
        return torch.ones_like(inputs[0]) if encoding is None else encoding[step]

    before = inputs
    states = [phi(0) * out for out in decoder_layer(layer, settings, inputs, everyone)]
    converged = set()
    for step in range(1, settings.thinking_steps):
        converged |= {i for i in everyone if is_converged(before[i], states[i], settings)}
        left = [i for i in everyone if i not in converged]
        ratio = settings.select_ratios[step - 1]
        if ratio == 0:
            continue
        if settings.adaptive_routing:
            router = layer[f"routers.{step - 1}.weight"][0]
            norm = torch.tanh if settings.router_norm == "tanh" else torch.sigmoid
            weights = [norm(router @ state / settings.temperature) for state in states]
            chosen = choose(weights, ratio, settings.router_selection, left)
        else:
            weights = [torch.ones((), dtype=inputs[0].dtype) for _ in states]
            chosen = left
        thought = decoder_layer(layer, settings, [states[i] for i in chosen], chosen)
        following = list(states)
        for position, out in zip(chosen, thought, strict=True):
            if settings.thinking_update == "increment":
                out = out - states[position]
            update = phi(step) * weights[position] * out
            following[position] = (
                states[position] + update if settings.residual_thinking else update
            )
        if settings.reweighting == "symmetric":
            for position in set(everyone) - set(chosen):
                update = phi(step) * weights[position] * states[position]
                following[position] = (
                    states[position] + update if settings.residual_thinking else update
                )
        before, states = states, following
    return states


def is_converged(before, after, settings):
    """Early exit: a step has changed the token, but by less than ε of its length."""
    change = sum((after - before) ** 2).item()
    return 0 < change < settings.early_exit**2 * sum(before**2).item()


def choose(weights, ratio, rule, left):
    """Positions among those left that take a step, in rising order."""
    values = [weight.item() for weight in weights]
    order = sorted(left, key=lambda position: -values[position])
    if rule == "top_p":
        mass, count = 0.0, 0
        while mass < ratio * sum(values[position] for position in left):
            mass += values[order[count]]
            count += 1
    else:
        count = math.ceil(ratio * len(values))
    return sorted(order[:count])


def decoder_layer(layer, settings, states, positions):
    """A LLaMA layer on some tokens: causal attention among them, rotary at `positions`."""
    heads, kv_heads, size = settings.heads, settings.kv_heads, settings.head_dim
    normed = [rms_norm(state, layer["input_layernorm.weight"], settings) for state in states]
    queries = [layer["self_attn.q_proj.weight"] @ x for x in normed]
    keys = [layer["self_attn.k_proj.weight"] @ x for x in normed]
    values = [layer["self_attn.v_proj.weight"] @ x for x in normed]
    outputs = []
    for i, state in enumerate(states):
        attended = []
        for head in range(heads):
            kv = head * kv_heads // heads
            query = rotate(queries[i][head * size : (head + 1) * size], positions[i], settings)
            scores, seen = [], []
            for j in range(len(states)):
                if positions[j] > positions[i]:
                    continue
                key = rotate(keys[j][kv * size : (kv + 1) * size], positions[j], settings)
                scores.append(query @ key / math.sqrt(size))
                seen.append(values[j][kv * size : (kv + 1) * size])
            shares = torch.softmax(torch.stack(scores), dim=0)
            attended.append(sum(share * value for share, value in zip(shares, seen, strict=True)))
        hidden = state + layer["self_attn.o_proj.weight"] @ torch.cat(attended)
        x = rms_norm(hidden, layer["post_attention_layernorm.weight"], settings)
        gate, up = layer["mlp.gate_proj.weight"] @ x, layer["mlp.up_proj.weight"] @ x
        outputs.append(hidden + layer["mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
    return outputs


def rms_norm(vector, weight, settings):
    return weight * vector / torch.sqrt((vector * vector).mean() + settings.eps)


def rotate(vector, position, settings):
    """Rotary position: pairs (i, i + size/2) turned by position · theta^(-2i/size)."""
    half = len(vector) // 2
    exponents = torch.arange(half, dtype=vector.dtype) * 2 / len(vector)
    angles = position / settings.rope_theta**exponents
    first, second = vector[:half], vector[half:]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ]
    )
