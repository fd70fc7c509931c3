"""A Spark session that keeps quiet, and Spark's failures as sentences."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from py4j.protocol import Py4JError
from pyspark.accumulators import AccumulatorParam
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from data_prep.part_rows import Progress
from itt_composer.basics.errors import UserError

# For Spark 3: Java 18 and later lack what it, or Arrow in it, needs.
OLDEST_JAVA, NEWEST_JAVA = 8, 17
HOW_TO_GET_JAVA = (
    "install Java 8, 11 or 17 (Debian and Ubuntu: apt install openjdk-17-jre-headless) and set "
    "JAVA_HOME to it"
)
TOO_NEW_JAVA = ("getSubject is not supported", "java.nio.DirectByteBuffer.<init>(long, int) not")
# Spark ignores a configuration without an appender, and a shell logs its start if the
# level of the shell's own logger is not set.
SILENT_LOG = """\
rootLogger.level = off
rootLogger.appenderRef.nowhere.ref = nowhere
appender.nowhere.type = Null
appender.nowhere.name = nowhere
logger.shell.name = org.apache.spark.api.python.PythonGatewayServer
logger.shell.level = off
"""
PYTHON_ERROR = re.compile(r"^([A-Za-z_][\w.]*): (.+)$", re.MULTILINE)


@contextmanager
def spark_session(master: str | None) -> Iterator[SparkSession]:
    """Yield the session that exists, as in a notebook or on a cluster, else one for the block.

    Args:
        master: address of the cluster, "local[N]" for N cores of this machine, or None for what
            spark-submit or spark-defaults.conf says.

    Raises:
        UserError: there is no Java or no master, or Spark does not start.
    """
    present = SparkSession.getActiveSession()
    if present is not None:
        yield present
        return
    _check_java()
    # Executors would take any python3; theirs must have what this one has.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with TemporaryDirectory() as folder:
        builder = SparkSession.builder.appName("data_prep convert")
        for name, value in _settings(master, Path(folder)).items():
            builder = builder.config(name, value)
        with failures_as_sentences():
            session = builder.getOrCreate()
        try:
            yield session
        finally:
            session.stop()


def _settings(master: str | None, folder: Path) -> dict[str, str]:
    settings = {"spark.ui.showConsoleProgress": "false"}
    if master is not None:
        settings["spark.master"] = master
    if master is None or not master.startswith("local"):
        settings["spark.log.level"] = "FATAL"
    else:
        log = folder / "log4j2.properties"
        log.write_text(SILENT_LOG, encoding="utf-8")
        settings |= {
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={log.as_uri()}",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
        }
    return settings


def _check_java() -> None:
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return  # a driver that spark-submit started already has a JVM
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else "java"
    if shutil.which(java) is None:
        raise UserError(f"Spark needs Java and there is no {java}: {HOW_TO_GET_JAVA}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = java_version(said)
    if version is not None and not OLDEST_JAVA <= version <= NEWEST_JAVA:
        raise UserError(f"Spark does not run on Java {version} ({java}): {HOW_TO_GET_JAVA}")


def java_version(said: str) -> int | None:
    """Return the version, like 8 or 17, in what `java -version` prints; None if there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(match[1]) if match else None


@contextmanager
def failures_as_sentences() -> Iterator[None]:
    """Raise what fails on an executor or in Spark itself as a `UserError` of one line."""
    try:
        yield
    except (Py4JError, PySparkException) as error:
        raise UserError(sentence_of(str(error))) from None


def sentence_of(failure: str) -> str:
    """Find the sentence in the text of a failure: a `UserError` of an executor as it was raised.

    Args:
        failure: text of Spark's exception, with the stack traces of Python and Java.
    """
    if any(sign in failure for sign in TOO_NEW_JAVA):
        return f"Spark does not run on the Java of its driver or an executor: {HOW_TO_GET_JAVA}"
    python, _, _ = failure.partition("\n\tat ")  # where the first stack trace of Java begins
    errors = PYTHON_ERROR.findall(python.rpartition("Traceback (most recent call last):")[2])
    if "Traceback (most recent call last):" not in python or not errors:
        return f"Spark failed: {' '.join(python.split())}"
    kind, message = errors[-1]
    if kind.rpartition(".")[2] == UserError.__name__:
        return message
    if kind == ModuleNotFoundError.__name__:
        return f"a Spark executor has {message[0].lower()}{message[1:]}: install it there, too"
    return f"a Spark executor failed: {kind}: {message}"


def progress_counter(
    session: SparkSession, on_progress: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """Return a function for tasks to report progress; `on_progress` gets the sums here."""

    class Sums(AccumulatorParam):
        def __init__(self, report: Callable[[Progress], None] | None = None) -> None:
            self.report = report

        def __reduce__(self) -> tuple[Any, ...]:
            return Sums, ()  # a task has nobody to report to

        def zero(self, value: Progress) -> Progress:
            return Progress(0, 0, 0)

        def addInPlace(self, value1: Progress, value2: Progress) -> Progress:  # noqa: N802
            total = Progress(*(a + b for a, b in zip(value1, value2, strict=True)))
            if self.report is not None:
                self.report(total)
            return total

    return session.sparkContext.accumulator(Progress(0, 0, 0), Sums(on_progress)).add


@contextmanager
def unlogged_warnings() -> Iterator[None]:
    """Keep warnings off stderr where nobody has set logging up; a set-up one still gets them."""
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
