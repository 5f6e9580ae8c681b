"""A real HDFS (one NameNode, one DataNode) on the loopback interface, from what can be downloaded.

Hadoop's jars come with the source distribution of PySpark 2.4, a few others from Debian's packages;
both are fetched once, without root, into ``~/.cache/daskdml-tests``. Java must be there already.

    python -m tests.servers.hdfs          start one, say where it is, end it at Ctrl-C
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HADOOP = "2.7.3"
PYSPARK = "2.4.8"
"""A PySpark whose source distribution has the jars of Hadoop's servers."""

JARS = re.compile(
    r".*/jars/(hadoop-(annotations|auth|common|hdfs)|jetty(-util)?|guava|htrace-core"
    r"|commons-(cli|codec|collections|compress|configuration|digester|httpclient|io|lang|logging"
    r"|math3|net)|httpc(lient|ore)|jackson-(core|mapper)-asl|javax.servlet-api|jaxb-api|jsp-api"
    r"|jsr305|leveldbjni-all|log4j|netty(-all)?|protobuf-java|slf4j-(api|log4j12)|xercesImpl"
    r"|xmlenc|zookeeper)-\d[^/]*\.jar"
)
DEBIAN = [f"libjersey1-{part}-java" for part in ("core", "server", "servlet")]
DEBIAN += ["libjsr311-api-java", "libcommons-daemon-java"]
"""What PySpark leaves out of the web server that WebHDFS needs."""

JAVA_OPTIONS = [
    "-Xmx192m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # starts sooner
    "-Djava.net.preferIPv4Stack=true",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in ("java.lang", "java.nio", "sun.nio.ch", "java.util", "java.io")
    ),
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
]
SERVERS = "org.apache.hadoop.hdfs.server"
LOG = """log4j.rootLogger=INFO,A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d %p %c{1}: %m%n
"""


class Missing(Exception):
    """Something that a server needs is not here and cannot be had."""


class HdfsServer(NamedTuple):
    """Where a server listens."""

    port: int
    web_port: int

    def url(self, name: str) -> str:
        """Give a URL of the native protocol."""
        return f"hdfs://127.0.0.1:{self.port}/tests/{name}"

    def web_url(self, name: str) -> str:
        """Give the URL of the same file by HTTP."""
        return f"webhdfs://127.0.0.1:{self.web_port}/tests/{name}"


def find_java() -> str:
    """Give a Java from 11 to 23: before, it lacks our options; after, what Hadoop 2.7 asks for."""
    places = [os.environ.get("JAVA_HOME", ""), *map(str, Path("/usr/lib/jvm").glob("*"))]
    named = [shutil.which("java"), *(f"{place}/bin/java" for place in places if place)]
    for java in filter(None, named):
        with contextlib.suppress(OSError):
            said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
            version = re.search(r'version "(\d+)', said)
            if version and 11 <= int(version[1]) <= 23:
                return java
    raise Missing("no Java from 11 to 23 is here; install openjdk-17-jre-headless")


def cached_jars() -> Path:
    """Give the folder of the jars, fetching them the first time."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daskdml-tests"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side fetch once
        jars = home / f"hadoop-{HADOOP}"
        if not jars.exists():
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                new = Path(scratch) / "jars"
                new.mkdir()
                _from_debian(Path(scratch), new)
                _from_pyspark(Path(scratch), new)
                new.rename(jars)
        return jars


def _run(what: str, *command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{what} could not be fetched: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise Missing(f"{what} could not be fetched (no network?): {said[-1][:300]}")


def _from_pyspark(scratch: Path, jars: Path) -> None:
    # pip runs the setup.py of what it downloads, and this one needs an older setuptools.
    python = str(scratch / "venv/bin/python")
    _run("pip", sys.executable, "-m", "venv", "venv", cwd=scratch)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "-q")
    _run("setuptools", *pip, "install", "setuptools<80", "wheel", cwd=scratch)
    source = ("--no-deps", "--no-build-isolation", "--no-binary", "pyspark", f"pyspark=={PYSPARK}")
    _run(f"pyspark {PYSPARK}", *pip, "download", *source, cwd=scratch)
    with tarfile.open(scratch / f"pyspark-{PYSPARK}.tar.gz") as tar:
        for member in tar:
            if JARS.fullmatch(member.name):
                packed = tar.extractfile(member)
                assert packed is not None
                (jars / Path(member.name).name).write_bytes(packed.read())


def _from_debian(scratch: Path, jars: Path) -> None:
    if os.getuid() == 0:
        with contextlib.suppress(Missing):  # the lists that are here may do
            _run("Debian's lists of packages", "apt-get", "update", "-q", cwd=scratch)
    _run("Debian's " + ", ".join(DEBIAN), "apt-get", "download", "-q", *DEBIAN, cwd=scratch)
    for package in scratch.glob("*.deb"):
        _run(package.name, "dpkg-deb", "-x", str(package), "debian", cwd=scratch)
    for jar in (scratch / "debian/usr/share/java").glob("*.jar"):
        if not jar.is_symlink():
            shutil.copy(jar, jars)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _configure(base: Path, port: int, web_port: int) -> None:
    local = "127.0.0.1"
    core = {
        "fs.defaultFS": f"hdfs://{local}:{port}",
        "hadoop.tmp.dir": f"{base}/tmp",
        "hadoop.http.staticuser.user": getpass.getuser(),
    }
    hdfs = {
        "dfs.replication": 1,
        "dfs.permissions.enabled": "true",
        "dfs.webhdfs.enabled": "true",
        "dfs.blocksize": 32 << 20,
        "dfs.heartbeat.interval": 1,
        "dfs.namenode.name.dir": f"file://{base}/name",
        "dfs.namenode.rpc-address": f"{local}:{port}",
        "dfs.namenode.rpc-bind-host": local,
        "dfs.namenode.http-address": f"{local}:{web_port}",
        "dfs.namenode.http-bind-host": local,
        "dfs.namenode.safemode.extension": 0,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.datanode.data.dir": f"file://{base}/data",
        "dfs.datanode.address": f"{local}:0",
        "dfs.datanode.http.address": f"{local}:0",
        "dfs.datanode.ipc.address": f"{local}:0",
        "dfs.datanode.hostname": local,
        "dfs.datanode.du.reserved": 0,
        "dfs.client.use.datanode.hostname": "true",
    }
    for name, values in {"core-site": core, "hdfs-site": hdfs}.items():
        rows = [
            f"<property><name>{k}</name><value>{v}</value></property>" for k, v in values.items()
        ]
        text = "\n".join(["<configuration>", *rows, "</configuration>"])
        (base / f"{name}.xml").write_text(text)
    (base / "log4j.properties").write_text(LOG)
    for page in ("hdfs", "datanode", "static"):  # the jars lack the pages of the web server
        (base / "webapps" / page / "WEB-INF").mkdir(parents=True)
        (base / "webapps" / page / "WEB-INF/web.xml").write_text("<web-app/>")


def _is_up(server: HdfsServer) -> bool:
    state = "jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
    with (
        contextlib.suppress(OSError, ValueError, KeyError, IndexError),
        urllib.request.urlopen(f"http://127.0.0.1:{server.web_port}/{state}", timeout=2) as got,
    ):
        facts = json.load(got)["beans"][
            0
        ]  # a node that has not said how much room it has, has none
        return facts["NumLiveDataNodes"] == 1 and facts["CapacityRemaining"] > 0
    return False


@contextlib.contextmanager
def hdfs() -> Iterator[HdfsServer]:
    """Run a NameNode and a DataNode with an empty file system.

    Raises
    ------
    Missing
        Where Java or the jars are not here and cannot be had; says which.
    """
    java, jars = find_java(), cached_jars()
    port, web_port = _free_ports(2)
    server = HdfsServer(port, web_port)
    first = sorted([*jars.glob("jsr311*.jar"), *jars.glob("jersey1*.jar")])
    with (
        tempfile.TemporaryDirectory(prefix="daskdml-hdfs-") as folder,
        contextlib.ExitStack() as up,
    ):
        base = Path(folder)
        _configure(base, port, web_port)
        path = ":".join(map(str, [base, *first, f"{jars}/*"]))
        command = [java, *JAVA_OPTIONS, f"-Dhadoop.home.dir={base}", "-cp", path]
        name_node = [*command, f"{SERVERS}.namenode.NameNode"]
        with open(base / "format.log", "w") as log:
            subprocess.run(
                [*name_node, "-format", "-force", "-nonInteractive"], stdout=log, stderr=log,
                check=True, timeout=120,
            )  # fmt: skip
        nodes = {"name": name_node, "data": [*command, f"{SERVERS}.datanode.DataNode"]}
        running = [_start(up, base / f"{name}.log", node) for name, node in nodes.items()]
        end = time.monotonic() + 90
        while not _is_up(server):
            if time.monotonic() > end or any(node.poll() is not None for node in running):
                logs = "\n".join(p.read_text()[-2000:] for p in base.glob("*.log"))
                raise RuntimeError(f"HDFS did not start:\n{logs}")
            time.sleep(0.1)
        yield server


def _start(up: contextlib.ExitStack, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
    with open(log, "wb") as out:
        node = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    up.callback(node.wait, 20)
    up.callback(node.kill)
    return node


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), hdfs() as running:
        sys.stdout.write(f"{running.url('')} {running.web_url('')}\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)
