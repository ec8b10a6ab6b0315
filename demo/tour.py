"""What the demo shows, act by act. Every line of output is what a program printed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from shop import API, PYTHON, Done, Shop, World, wait_for_line
from stage import Stage

from lab.host import Host

BULKHEAD = Path(sys.prefix) / "bin" / "bulkhead"
SHOP_URL = "http://127.0.0.1:8080"
RULES_SHOWN = "5,19p"
"""Lines of shop.yaml: who they are, and what they may."""


class Tour:
    """One walk through the shop."""

    def __init__(self, stage: Stage, host: Host, shop: Shop, world: World) -> None:
        self._stage = stage
        self._host = host
        self._shop = shop
        self._world = world

    def walk(self) -> None:
        """All of it, in order."""
        self.without()
        self.policy()
        self.allowed()
        self.refused()
        self.counted()
        self.cut()
        self.undone()
        self.crash()

    # Acts

    def without(self) -> None:
        """A host as most are."""
        self._stage.act("1  Without Bulkhead: what runs on a host reaches all of it")
        self._person("curl", "-s", f"{SHOP_URL}/")
        self._rogue()
        self._stage.say("A process that has no business there reads the shop's data.")

    def policy(self) -> None:
        """The commit, and the agent that puts it into force on what is running already."""
        self._stage.act("2  Policy is a commit; the agent puts it into force on what is running already")
        self._shop.commit_policy()
        self._operator(["sh", "-c", f"git -C policy show HEAD:shop.yaml | cat -n | sed -n {RULES_SHOWN}"])
        started = time.monotonic()
        self._stage.typed("operator", "bulkhead agent &")
        self._host.start_agent()
        self._stage.printed([f"ready after {time.monotonic() - started:.1f} s"])
        self._bulkhead("status")

    def allowed(self) -> None:
        """The shop works, from inside and from outside."""
        self._stage.act("3  What policy allows works")
        self._person("curl", "-s", f"{SHOP_URL}/")
        self._from_outside()
        self._bulkhead("rules", "ls")

    def refused(self) -> None:
        """Three attacks, each refused by another pair of identities."""
        self._stage.act("4  What it does not allow is refused, and explained")
        self._stage.say("The rogue again. No workload selects it: to policy it is the `host`.")
        self._rogue()
        self._bulkhead("why", "host", "cache:6379")
        self._stage.say("A breached web server: through a hole, nginx fetches whatever an attacker likes.")
        self._person("curl", "-s", "-o", "/dev/null", "-w", "HTTP %{http_code}\n", f"{SHOP_URL}/fetch/127.0.0.1:6379")
        self._stage.printed([self._nginx_error()])
        self._bulkhead("why", "web", "cache:6379")
        self._stage.say("The API itself tries to send the customers' data away. The address is alive:")
        self._person("curl", "-s", f"http://{World.ADDRESS}/")
        self._person("curl", "-s", f"{SHOP_URL}/export")
        self._bulkhead("why", "api", f"{World.ADDRESS}:80")

    def counted(self) -> None:
        """All refusals, as records and as counters."""
        self._stage.act("5  Refusals are counted in the kernel")
        self._bulkhead("drops")
        wanted = """'^bulkhead_(drops_total|policy_verdicts_total.*"deny")'"""
        script = f"curl -s http://127.0.0.1:9464/metrics | grep -E {wanted}"
        self._stage.shown("people", script, self._shop.run("people", "sh", "-c", script))

    def cut(self) -> None:
        """One line changes who `api` is, and an open connection ends."""
        self._stage.act("6  A change is a commit, and cuts what is open")
        self._stage.say("Somebody left a redis-cli open beside the API. By its control group it is `api`, too.")
        ping = ["redis-cli", "-r", "-1", "-i", "0.1", "ping"]
        self._stage.typed("shop/api", " ".join(ping))
        client = self._shop.start(API, *ping)
        for _ in range(3):
            self._stage.printed([wait_for_line(client.stdout, "PONG")])
        self._stage.say("One line: `api` is its own program from now on, not whatever runs beside it.")
        self._narrow_api()
        self._operator(["git", "-C", "policy", "--no-pager", "diff", "-U0"])
        self._operator(["git", "-C", "policy", "commit", "-qam", "api is its own program"])
        self._watch_end(client)
        self._show_log()
        self._person("curl", "-s", f"{SHOP_URL}/")

    def undone(self) -> None:
        """The same way back."""
        self._stage.act("7  The way back is a commit, too")
        self._operator(["git", "-C", "policy", "revert", "--no-edit", "HEAD"])
        started = time.monotonic()
        self._host.wait_for_commit(self._head())
        self._stage.printed([f"in force at most {time.monotonic() - started:.1f} s later"])
        self._stage.shown("shop/api", "redis-cli ping", self._shop.run(API, "redis-cli", "ping"))

    def crash(self) -> None:
        """The agent is killed, and nothing opens."""
        self._stage.act("8  The kernel goes on without the agent")
        agent = self._host.agent
        if agent is None:
            raise RuntimeError("the agent does not run")
        self._stage.typed("operator", f"kill -9 {agent.pid}")
        self._host.stop_agent(9)
        self._rogue()
        self._person("curl", "-s", f"{SHOP_URL}/")

    # Who does what

    def _person(self, *argv: str) -> None:
        self._stage.shown("people", _line(argv), self._shop.run("people", *argv))

    def _rogue(self) -> None:
        argv = ("redis-cli", "get", "visits")
        self._stage.shown("rogue", _line(argv), self._shop.run("rogue", *argv))

    def _from_outside(self) -> None:
        argv = ("curl", "-s", f"http://{World.SHOP}:8080/")
        self._stage.shown("world", _line(argv), self._world.run(*argv))

    def _bulkhead(self, *arguments: str) -> Done:
        argv = [str(BULKHEAD), *arguments, "--run-dir", str(self._host.run_dir)]
        done = self._stage.run(argv, self._host.directory, dict(os.environ))
        self._stage.shown("operator", _line(("bulkhead", *arguments)), done)
        return done

    def _operator(self, argv: list[str]) -> None:
        done = self._stage.run(argv, self._host.directory, _git_environment())
        if done.returncode:
            raise RuntimeError(f"{_line(argv)} failed: {done.stdout}{done.stderr}")
        self._stage.shown("operator", argv[2] if argv[0] == "sh" else _line(argv), done)

    def _nginx_error(self) -> str:
        """What nginx logged, without the parts that say what has just been seen."""
        _, what, rest = self._shop.nginx_says("connect() ").partition("connect() ")
        return f"nginx: {what}{rest.partition(', client: ')[0]}"

    def _narrow_api(self) -> None:
        path = self._host.repository / "shop.yaml"
        before = path.read_text()
        old = "api: {match: {cgroup: /shop/api}, "
        new = f"api: {{match: {{cgroup: /shop/api, exe: {Path(PYTHON).resolve()}}}, "
        if before.count(old) != 1:
            raise RuntimeError(f"policies/shop.yaml has changed: the demo looks for `{old}`")
        path.write_text(before.replace(old, new))

    def _watch_end(self, client: subprocess.Popen[str]) -> None:
        """What the client said from the commit to its end, and how long that took."""
        started = time.monotonic()
        said = client.communicate(timeout=20)[0].splitlines()
        took_ms = (time.monotonic() - started) * 1000
        pongs = said.count("PONG")
        self._stage.typed("shop/api", f"... {pongs} PONG later, {took_ms:.0f} ms after the commit:")
        self._stage.printed(line for line in said if line != "PONG")

    def _show_log(self) -> None:
        """What the agent logged of it."""
        words = ("enforcing commit=" + self._head()[:7], "destroyed a socket")
        argv = ["tail", "-n", "+1", "-F", str(self._host.directory / "agent.log")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
            try:
                lines = [wait_for_line(tail.stdout, word) for word in words]
            finally:
                tail.kill()
        self._stage.typed("operator", "tail agent.log")
        self._stage.printed(lines)

    def _head(self) -> str:
        argv = ["git", "-C", str(self._host.repository), "rev-parse", "HEAD"]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _line(argv: tuple[str, ...] | list[str]) -> str:
    """A command line as it is typed."""
    return " ".join(f"'{one}'" if set(one) & set(" %\n") else one for one in argv).replace("\n", "\\n")


def _git_environment() -> dict[str, str]:
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "operator"), ("EMAIL", "operator@example.org"))
    }
    return os.environ | who | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_EDITOR": "true"}
