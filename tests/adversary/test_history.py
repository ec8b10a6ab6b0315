"""Ways to get a change past the signers: each is tried by somebody who may write applications only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bulkhead.errors import PolicyError
from bulkhead.policy.history import History
from bulkhead.policy.signers import read_operators
from lab.signing import SignedRepository, SshSigner, roots_file, ssh_signer

Attack = Callable[[SignedRepository, SshSigner], object]


def policy(name: str, level: str, unit: str = "") -> str:
    head = f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: {name}, level: {level}}}\n"
    return head + f"workloads:\n  {name}: {{match: {{unit: {unit or name}.service}}}}\n"


GUARD = policy("guard", "guardrail")
OPENED = policy("guard", "guardrail", "other")
BASE = {
    "bulkhead.yaml": "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n",
    "shop.yaml": policy("shop", "app"),
    "guard.yaml": GUARD,
}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> SshSigner:
    return ssh_signer(tmp_path_factory.mktemp("keys"), "app")


@pytest.fixture
def repository(tmp_path) -> SignedRepository:
    made = SignedRepository(tmp_path / "r")
    made.commit(BASE)
    return made


def judged(repository: SignedRepository, directory: Path, app: SshSigner, last: str) -> None:
    roots = read_operators(roots_file(directory / "signers.toml", (app, "app")))
    History(repository.path, roots, directory / "keyring").judge(last, repository.head())


def smuggled_by(parents: int) -> Attack:
    """A merge, signed, whose tree differs from that of every parent."""

    def attack(git: SignedRepository, app: SshSigner) -> None:
        start = git.head()
        heads = []
        for number in range(parents):
            git.git("checkout", "-q", "-B", f"side-{number}", start)
            heads.append(git.commit({f"app-{number}.yaml": policy(f"a{number}", "app")}, app))
        git.git("checkout", "-q", "-B", "main", heads[0])
        git.write({"guard.yaml": OPENED})
        git.git("add", "--all")
        merged = [option for head in heads for option in ("-p", head)]
        commit = git.git("commit-tree", "-S", *merged, "-m", "merge", git.git("write-tree"), signer=app)
        git.git("reset", "-q", "--hard", commit)

    return attack


def replaced(git: SignedRepository, app: SshSigner) -> None:
    """What the commit holds is shown to be something harmless by a replace reference."""
    start = git.head()
    harmless = git.commit({"shop.yaml": policy("shop", "app", "shop-2")}, app)
    git.git("reset", "-q", "--hard", start)
    evil = git.commit({"guard.yaml": OPENED}, app)
    git.git("replace", evil, harmless)


def replaced_tree(git: SignedRepository, app: SshSigner) -> None:
    before = git.git("rev-parse", "HEAD^{tree}")
    git.commit({"guard.yaml": OPENED}, app)
    git.git("replace", git.git("rev-parse", "HEAD^{tree}"), before)


def grafted(git: SignedRepository, app: SshSigner) -> None:
    """The parent that would show the difference is grafted away."""
    start = git.head()
    git.commit({"guard.yaml": OPENED}, app)
    harmless = git.commit({"shop.yaml": policy("shop", "app", "shop-2")}, app)
    (git.path / ".git" / "info").mkdir(exist_ok=True)
    (git.path / ".git" / "info" / "grafts").write_text(f"{harmless} {start}\n")


def undone(git: SignedRepository, app: SshSigner) -> None:
    git.commit({"guard.yaml": OPENED}, app)
    git.commit({"guard.yaml": GUARD}, app)


def demoted(git: SignedRepository, app: SshSigner) -> None:
    git.commit({"guard.yaml": policy("guard", "app")}, app)


def moved_out(git: SignedRepository, app: SshSigner) -> None:
    """To a name that is no policy file, byte for byte."""
    git.commit({"guard.yaml": None, "guard.yaml.off": GUARD}, app)


def linked(git: SignedRepository, app: SshSigner) -> None:
    git.write({"guard.yaml": None})
    (git.path / "guard.yaml").symlink_to("shop.yaml")
    git.commit({}, app)


def vendored(git: SignedRepository, app: SshSigner) -> None:
    """A submodule in the file's place, removed again."""
    git.git("update-index", "--add", "--cacheinfo", f"160000,{git.head()},guard.yaml")
    git.git("commit", "-q", "-S", "-m", "vendor", signer=app)
    git.git("reset", "-q", "--hard")


def hidden_by_attributes(git: SignedRepository, app: SshSigner) -> None:
    """Attributes that tell git not to compare the file."""
    git.commit({".gitattributes": "guard.yaml -diff binary export-ignore\n"}, app)
    git.commit({"guard.yaml": OPENED}, app)


def under_odd_names(git: SignedRepository, app: SshSigner) -> None:
    """Names that look like the lines in which git tells of commits and changes, before the file that matters."""
    odd = {f"{name}.yaml": policy(f"odd{number}", "app") for number, name in enumerate(("@x|", ":100644", "a\nb"))}
    git.commit({**odd, "guard.yaml": OPENED}, app)


def behind_a_long_message(git: SignedRepository, app: SshSigner) -> None:
    git.write({"guard.yaml": OPENED})
    git.git("add", "--all")
    git.git("commit", "-q", "-S", "-F", "-", signer=app, stdin=b"x" * (8 << 20))


def signing_himself_in(git: SignedRepository, app: SshSigner) -> None:
    more = f"signers:\n  app: {{level: guardrail, key: '{app.written}'}}\n"
    git.commit({"bulkhead.yaml": BASE["bulkhead.yaml"] + more}, app)
    git.commit({"guard.yaml": OPENED}, app)


def broken_in_between(git: SignedRepository, app: SshSigner) -> None:
    """What cannot be read has no level: the file is broken, and mended to something else."""
    git.commit({"guard.yaml": "{"}, app)
    git.commit({"guard.yaml": policy("guard", "app", "other")}, app)


ATTACKS: dict[str, Attack] = {
    "a merge of two": smuggled_by(2),
    "a merge of four": smuggled_by(4),
    "a replaced commit": replaced,
    "a replaced tree": replaced_tree,
    "a graft": grafted,
    "undone by the next": undone,
    "another level": demoted,
    "another file name": moved_out,
    "a symbolic link": linked,
    "a submodule for a while": vendored,
    "attributes": hidden_by_attributes,
    "odd names": under_odd_names,
    "a long message": behind_a_long_message,
    "his own signer": signing_himself_in,
    "a broken file in between": broken_in_between,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_guardrail_is_changed_by_nobody_who_may_not(tmp_path, repository, app, attack: Attack) -> None:
    start = repository.head()
    attack(repository, app)
    with pytest.raises(PolicyError, match=r"BH110[67]"):
        judged(repository, tmp_path, app, start)


def test_what_an_application_may_change_is_accepted_by_the_same_signer(tmp_path, repository, app) -> None:
    start = repository.head()
    repository.commit({"shop.yaml": policy("shop", "app", "shop-2"), "@:new.yaml": policy("new", "app")}, app)
    judged(repository, tmp_path, app, start)
