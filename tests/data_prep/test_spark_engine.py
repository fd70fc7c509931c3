"""The Spark engine on a session of this machine: the same rows and counts as the local engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pytest
from small_conversions import content, rows_of, texts_of, write_jsonl
from streaming import StreamingDataset

from data_prep.budgets import Budgets
from data_prep.convert import _spark_engine, convert_corpus
from data_prep.documents import Fields
from data_prep.domains import find_corpus
from data_prep.options import Options
from data_prep.part_plan import plan_parts
from data_prep.part_rows import PartProgress, Settings
from data_prep.rejects import RejectLimit
from data_prep.shard_writing import ShardOptions
from data_prep.spark_engine import run_spark
from data_prep.spark_session import java_version, sentence_of, spark_session
from data_prep.tokenizer import load_corpus_tokenizer
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.manifest import Manifest
from itt_composer.data.shared_memory import free_number, number_taken

pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
if shutil.which("java") is None:
    if os.environ.get("CI"):
        pytest.fail("Spark needs Java: install a headless JRE 17, and run these tests again")
    pytest.skip("Spark needs Java", allow_module_level=True)

SEQ_LEN = 64
PART_BYTES = 75_000
SHARD_BYTES = 30_000


@pytest.fixture(scope="module")
def spark(s3_environment: dict[str, str]) -> Iterator[Any]:
    """One session for all tests, as in a notebook; its executors reach the S3 server."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_environment.items():
            environment.setenv(name, value)
        with spark_session("local[2]") as session:
            yield session


@pytest.fixture(scope="module")
def root_with_bad_lines(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """`root`, a domain of a single short document, and a bad line in each half of a file."""
    copy = tmp_path_factory.mktemp("bad") / "root"
    shutil.copytree(root, copy)
    write_jsonl(copy / "tiny" / "one.jsonl", ["Too short for a row."])
    lines = (copy / "prose" / "all.jsonl").read_text().splitlines()
    lines[10:10] = ["{"]
    lines[-5:-5] = ['{"txt": ""}']
    (copy / "prose" / "all.jsonl").write_text("\n".join(lines) + "\n")
    return copy


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, root_with_bad_lines: Path, tokenizer: Path
) -> Path:
    """What the local engine makes of it."""
    out = tmp_path_factory.mktemp("local") / "shards"
    convert_locally(root_with_bad_lines, tokenizer, out)
    return out


@pytest.fixture
def settings(root_with_bad_lines: Path, tokenizer: Path) -> Settings:
    return Settings(
        root=root_with_bad_lines,
        fields=Fields(),
        validation_share=0.2,
        tokenizer=load_corpus_tokenizer(str(tokenizer)),
        encoder="fast",
        skip_bad_lines=True,
        shards=ShardOptions(SEQ_LEN, "uint16", SHARD_BYTES, None, ("sha1",)),
    )


@pytest.fixture
def run_engine(settings: Settings) -> Callable[..., Any]:
    """Run the engine on `settings`, some of them changed."""

    def run(
        out: object, budgets: Budgets | None = None, spread: bool = False, **changed: Any
    ) -> Any:
        used = replace(settings, **changed)
        plan = plan_parts(
            used.root,
            find_corpus(used.root, used.fields.domain is not None).sources,
            PART_BYTES,
            spread,
        )
        limit = RejectLimit(0.5)
        return run_spark(
            plan, used, budgets or Budgets({}), limit, out, "local[2]", progress.append
        )

    progress: list[PartProgress] = []
    run.progress = progress  # type: ignore[attr-defined]
    return run


def convert_locally(root: Path, tokenizer: Path, out: Path, **changed: Any) -> None:
    options = Options(root, str(out), str(tokenizer), SEQ_LEN, validation_share=0.2, workers=1)
    sizes = {"part_size": PART_BYTES, "shard_size": SHARD_BYTES}
    rejects = {"skip_bad_lines": True, "max_reject_share": 0.5}
    convert_corpus(replace(options, **sizes, **rejects, **changed))


def assert_same(streams: dict[str, Any], out: Path, local: Path) -> None:
    for split, domains in Manifest.read(local).splits.items():
        for domain, counts in domains.items():
            assert streams[split][domain].counts == counts
            if counts.rows:
                rows = rows_of(out / split / domain)
                np.testing.assert_array_equal(rows, rows_of(local / split / domain))
            else:
                assert not (out / split / domain).exists()
                assert streams[split][domain].files == {}


def files_of(streams: dict[str, Any]) -> dict[str, Any]:
    files = {}
    for domains in streams.values():
        for stream in domains.values():
            files |= stream.files
    return files


def test_gives_the_rows_and_counts_of_the_local_engine(
    spark, run_engine, root_with_bad_lines, local, tmp_path
):
    out = tmp_path / "spark"
    stale = out / "train" / "code" / "4" / "shard.00000.mds"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of a run that was killed")
    parts, streams = run_engine(out)
    assert len(parts["prose"]) > 2
    assert_same(streams, out, local)
    assert files_of(streams) == {name: Fingerprint.of(out / name) for name in content(out)}
    manifest = Manifest.read(local)
    rejects = {domain: sum(len(p.record.rejects) for p in done) for domain, done in parts.items()}
    assert rejects == manifest.rejects == {"code": 0, "prose": 2, "tiny": 0}
    last = run_engine.progress[-1]
    assert last.documents == sum(counts.documents for counts in manifest.totals.values())
    assert last.tokens == sum(c.tokens + c.dropped_tokens for c in manifest.totals.values())
    files = root_with_bad_lines.rglob("*.jsonl")
    assert last.input_bytes == sum(path.stat().st_size for path in files)


def test_budgets_take_the_rows_that_the_local_engine_takes(
    spark, run_engine, root_with_bad_lines, tokenizer, tmp_path
):
    shares = tmp_path / "shares.yaml"
    shares.write_text("code: 0.5\nprose: 0.4\ntiny: 0.1\n")
    options = {"train_tokens": 25_600, "shares": shares}
    convert_locally(root_with_bad_lines, tokenizer, tmp_path / "local", **options)
    budgets = Budgets.of(25_600, None, {"code": 0.5, "prose": 0.4, "tiny": 0.1}, SEQ_LEN)
    _, streams = run_engine(tmp_path / "spark", budgets, spread=True)
    assert streams["train"]["code"].counts.rows == 200
    assert_same(streams, tmp_path / "spark", tmp_path / "local")


def test_writes_compressed_shards_to_an_object_store_and_keeps_no_copies(
    spark, bucket, run_engine, local, tmp_path
):
    before = set(Path(gettempdir()).glob("data_prep_spark_*"))
    shards = ShardOptions(SEQ_LEN, "uint16", SHARD_BYTES, "zstd", ("sha256",))
    _, streams = run_engine(f"{bucket.url}/shards", shards=shards)
    assert set(Path(gettempdir()).glob("data_prep_spark_*")) == before
    for name, file in files_of(streams).items():
        assert name.endswith((".mds.zstd", "/index.json"))
        data = bucket.read(f"shards/{name}")
        assert file == Fingerprint(bytes=len(data), sha256=sha256(data).hexdigest())
    unlisted = {n.removeprefix("shards/") for n in bucket.names()} - files_of(streams).keys()
    assert unlisted  # which `verify` passes over
    assert all(re.fullmatch(r"[a-z]+/[a-z]+/\d+/index.json", name) for name in unlisted)
    for split, domains in Manifest.read(local).splits.items():
        for domain, counts in domains.items():
            assert streams[split][domain].counts == counts
            if counts.rows:
                place = f"{split}/{domain}"
                with number_taken(free_number(0)):
                    dataset = StreamingDataset(
                        remote=f"{bucket.url}/shards/{place}",
                        local=str(tmp_path / place),
                        batch_size=1,
                        validate_hash="sha256",
                    )
                rows = np.stack([dataset[index]["input_ids"] for index in range(counts.rows)])
                np.testing.assert_array_equal(rows, rows_of(local / place))


def test_a_store_that_cannot_be_used_is_one_sentence(spark, bucket, run_engine):
    with pytest.raises(UserError, match=r"^cannot write s3://nowhere/train/code \(.*404.*\): che"):
        run_engine("s3://nowhere")


def test_lines_that_name_their_domain_give_the_rows_of_the_local_engine(
    spark, run_engine, root_with_bad_lines, tokenizer, tmp_path
):
    texts = texts_of(root_with_bad_lines / "code")
    named = [{"text": text, "source": "abb"[number % 3]} for number, text in enumerate(texts)]
    (tmp_path / "root").mkdir()
    lines = [json.dumps(line) + "\n" for line in named]
    (tmp_path / "root" / "x.jsonl").write_text("".join(lines))
    (tmp_path / "shares.yaml").write_text("a: 0.3\nb: 0.7\n")
    options = {"train_tokens": 19_200, "shares": tmp_path / "shares.yaml", "domain_field": "source"}
    convert_locally(tmp_path / "root", tokenizer, tmp_path / "local", **options)
    budgets = Budgets.of(19_200, None, {"a": 0.3, "b": 0.7}, SEQ_LEN)
    changed = {"root": tmp_path / "root", "fields": Fields("text", "source", frozenset("ab"))}
    _, streams = run_engine(tmp_path / "spark", budgets, spread=True, **changed)
    assert {d: s.counts.rows for d, s in streams["train"].items()} == {"a": 90, "b": 210}
    assert_same(streams, tmp_path / "spark", tmp_path / "local")


def test_a_bad_line_is_reported_as_everywhere(spark, run_engine, root_with_bad_lines, tmp_path):
    file = root_with_bad_lines / "prose" / "all.jsonl"
    with pytest.raises(UserError) as error:
        run_engine(tmp_path / "out", skip_bad_lines=False)
    # The two bad lines are in two tasks: whichever comes first.
    sentence = r", line (11: broken JSON at column \d+ \(.+\)|\d+: no field \"text\"; .+)"
    assert re.fullmatch(re.escape(str(file)) + sentence, str(error.value))


def test_input_that_executors_do_not_see_is_named(spark, settings, tmp_path):
    plan = plan_parts(settings.root, find_corpus(settings.root).sources, PART_BYTES, False)
    elsewhere = replace(settings, root=tmp_path / "elsewhere")
    sentence = rf"^a Spark executor cannot read {tmp_path}/elsewhere/code/\S+ \(No such file or di"
    with pytest.raises(UserError, match=sentence):
        run_spark(plan, elsewhere, Budgets({}), RejectLimit(0.5), tmp_path / "out", None)


JAVA_TRACE = "\n\tat org.apache.spark.Task.run(Task.scala:1)\nCaused by: Traceback (most recent"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            "Job aborted.\nTraceback (most recent call last):\n  File 'a.py'\n    x: int = 1\n"
            f"itt_composer.basics.errors.UserError: c4/a.jsonl, line 7: broken JSON{JAVA_TRACE}",
            "c4/a.jsonl, line 7: broken JSON",
        ),
        (
            f"Traceback (most recent call last):\n  x\nOSError: [Errno 28] Disk full{JAVA_TRACE}",
            "a Spark executor failed: OSError: [Errno 28] Disk full",
        ),
        (
            "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'a'\n",
            "a Spark executor has no module named 'a': install it there, too",
        ),
        (
            f"An error occurred.\n: org.apache.SparkException: Master gone{JAVA_TRACE}",
            "Spark failed: An error occurred. : org.apache.SparkException: Master gone",
        ),
        (
            "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n: "
            f"java.lang.UnsupportedOperationException: getSubject is not supported{JAVA_TRACE}",
            "Spark does not run on the Java of its driver or an executor: install Java 8, 11 or 17 "
            "(Debian and Ubuntu: apt install openjdk-17-jre-headless) and set JAVA_HOME to it",
        ),
    ],
)
def test_the_sentence_in_a_failure(failure, sentence):
    assert sentence_of(failure) == sentence


def test_without_pyspark_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.delitem(sys.modules, "data_prep.spark_engine")
    with pytest.raises(UserError, match=r"PySpark is not installed: run `pip install -e '.\[spark"):
        _spark_engine()


OWN_SESSION = """
from data_prep.spark_session import spark_session
from itt_composer.basics.errors import UserError
try:
    with spark_session("local[1]") as spark:
        print(spark.range(3).count())
except UserError as error:
    raise SystemExit(f"error: {error}")
"""


def run_alone(environment: dict[str, str]) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-c", OWN_SESSION], env=environment, capture_output=True, text=True
    )
    return result.returncode, result.stdout, result.stderr


def test_a_session_of_its_own_is_quiet():
    path = Path(shutil.which("java")).parent
    assert run_alone({"PATH": f"{path}:/usr/bin:/bin"}) == (0, "3\n", "")


def test_without_java_says_what_to_install(tmp_path):
    code, out, err = run_alone({"PATH": str(tmp_path)})
    assert (code, out) == (1, "")
    assert err.startswith("error: Spark needs Java and there is no java: install Java 8, 11 or 17")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "25" 2025-09-16 LTS', 25),
        ('openjdk version "21-ea" 2023-09-19', 21),
        ("Picked up JAVA_TOOL_OPTIONS: -Xmx1g", None),
    ],
)
def test_version_of_java_is_read_as_it_says_it(line, version):
    assert java_version(f"{line}\nOpenJDK Runtime Environment") == version


def test_java_that_spark_does_not_run_on_is_named_with_those_that_it_does(tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"21.0.8\" 2025-07-15 LTS' >&2\n")
    java.chmod(0o755)
    code, out, err = run_alone({"PATH": "/usr/bin:/bin", "JAVA_HOME": str(tmp_path)})
    assert (code, out) == (1, "")
    assert err.startswith(
        f"error: Spark does not run on Java 21 ({java}): install Java 8, 11 or 17"
    )
    assert err.count("\n") == 1
