from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bulkhead.errors import PolicyError, UnreachableError, UsageError
from bulkhead.policy import history
from bulkhead.policy.history import History, Verified
from bulkhead.policy.signatures import signing_key
from bulkhead.policy.signers import Roots, read_operators
from lab.signing import (
    PgpSigner,
    SignedRepository,
    SshSigner,
    close_agent,
    gpg,
    pgp_signer,
    roots_file,
    run,
    ssh_signer,
)

BULKHEAD = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
FULL = ("guard", "guardrail"), ("plat", "platform"), ("app", "app")


def policy(name: str = "shop", level: str = "app", body: str = "") -> str:
    head = f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: {name}, level: {level}}}\n"
    return head + f"workloads:\n  {name}: {{match: {{unit: {name}.service}}}}\n" + body


def never(why: str) -> str:
    return f"never:\n  - {{name: apart, from: shop, to: world, why: {why}}}\n"


BASE = {
    "bulkhead.yaml": BULKHEAD,
    "shop.yaml": policy() + never("yes"),
    "base.yaml": policy("base", "platform"),
    "guard.yaml": policy("guard", "guardrail"),
}


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> dict[str, SshSigner]:
    """SSH signers by name: one for each level, and a stranger."""
    directory = tmp_path_factory.mktemp("keys")
    return {name: ssh_signer(directory, name) for name in ("guard", "plat", "app", "stranger")}


@pytest.fixture(scope="session")
def pgp(tmp_path_factory):
    """An OpenPGP signer."""
    signer = pgp_signer(tmp_path_factory.mktemp("p"), "pia")
    yield signer
    close_agent(signer)


@pytest.fixture
def repository(tmp_path) -> SignedRepository:
    one = SignedRepository(tmp_path / "r")
    one.commit(BASE)
    return one


@pytest.fixture
def judge(tmp_path, keys, repository):
    """Judges what came since `last` by the operator's signers; `roots` replaces them."""
    everybody = [(keys[name], level) for name, level in FULL]

    def run_it(last: str, commit: str = "", roots: Roots | None = None, now: datetime | None = None):
        given = read_operators(roots_file(tmp_path / "signers.toml", *everybody)) if roots is None else roots
        when = (lambda: now) if now else None
        judged = History(repository.path, given, tmp_path / "keyring", when)
        return judged.judge(last, commit or repository.head())

    return run_it


def refusal(call, *arguments, **options) -> str:
    """The rendered finding."""
    with pytest.raises(PolicyError) as error:
        call(*arguments, **options)
    return str(error.value)


def operators(tmp_path: Path, *signers, **options) -> Roots:
    return read_operators(roots_file(tmp_path / "other.toml", *signers, **options))


# Who signed


@pytest.mark.parametrize("name", ["guard", "plat", "app"])
def test_a_commit_at_the_signers_level_is_verified(repository, keys, judge, name):
    start = repository.head()
    file = {"guard": "guard.yaml", "plat": "base.yaml", "app": "shop.yaml"}[name]
    text = (repository.path / file).read_text()
    commit = repository.commit({file: text.replace(".service", "-2.service")}, keys[name])
    (found,) = judge(start)
    assert isinstance(found, Verified)
    assert (found.commit, found.signer.name) == (commit, name)


def test_an_openpgp_signature_is_verified(repository, pgp, judge, tmp_path):
    start = repository.head()
    repository.commit({"shop.yaml": policy()}, pgp)
    (found,) = judge(start, roots=operators(tmp_path, (pgp, "guardrail")))
    assert found.signer.name == "pia"


def test_nobody_has_to_sign_when_there_are_no_signers(repository, judge):
    start = repository.head()
    repository.commit({"shop.yaml": policy()})
    assert judge(start, roots=Roots()) == ()


@pytest.mark.parametrize("last", [True, False])
def test_refuse_a_commit_that_is_not_signed(repository, keys, judge, last):
    start = repository.head()
    unsigned = repository.commit({"README.md": "x"})
    if not last:
        repository.commit({"README.md": "y"}, keys["guard"])
    assert f"error[BH1101]: commit {unsigned[:7]} is not signed" in refusal(judge, start)


def test_refuse_an_unknown_signer(repository, keys, pgp, judge):
    start = repository.head()
    repository.commit({"README.md": "x"}, keys["stranger"])
    assert "BH1102" in refusal(judge, start)
    repository.git("reset", "-q", "--hard", start)
    repository.commit({"README.md": "x"}, pgp)
    assert "BH1102" in refusal(judge, start)


@pytest.mark.parametrize("date", ["2026-01-05T00:00:00Z", "2019-06-01T00:00:00Z"])
def test_refuse_an_expired_signer_whatever_date_he_gives_his_commit(repository, keys, judge, tmp_path, date):
    start = repository.head()
    repository.commit({"README.md": "x"}, keys["app"], date=date)
    roots = operators(tmp_path, (keys["app"], "app"), more="valid_before = 2020-01-01T00:00:00Z")
    assert "BH1103" in refusal(judge, start, roots=roots)


def test_refuse_a_signer_whose_key_is_not_valid_yet(repository, keys, judge, tmp_path):
    start = repository.head()
    repository.commit({"README.md": "x"}, keys["app"])
    roots = operators(tmp_path, (keys["app"], "app"), more="valid_after = 2200-01-01")
    assert "BH1103" in refusal(judge, start, roots=roots)


def test_a_key_within_its_validity_counts(repository, keys, judge, tmp_path):
    start = repository.head()
    repository.commit({"README.md": "x"}, keys["app"])
    roots = operators(tmp_path, (keys["app"], "app"), more="valid_after = 2020-01-01\nvalid_before = 2200-01-01")
    assert judge(start, roots=roots)
    assert "BH1103" in refusal(judge, start, roots=roots, now=datetime(2201, 1, 1, tzinfo=UTC))


def test_refuse_an_expired_openpgp_key(repository, judge, tmp_path):
    signer = pgp_signer(tmp_path, "old", expires="seconds=1")
    try:
        start = repository.head()
        repository.commit({"README.md": "x"}, signer)
        roots = operators(tmp_path, (signer, "guardrail"))
        repository.commit({"README.md": "z"}, None)
        repository.git("reset", "-q", "--hard", "HEAD~1")
        until = datetime.now(UTC) + timedelta(seconds=2)
        while datetime.now(UTC) < until:
            continue  # the key expires by gpg's own clock
        assert "BH1103" in refusal(judge, start, roots=roots)
    finally:
        close_agent(signer)


@pytest.mark.parametrize("krl", [False, True])
def test_refuse_a_revoked_key(repository, keys, judge, tmp_path, krl):
    start = repository.head()
    repository.commit({"README.md": "x"}, keys["app"])
    revoked = tmp_path / "revoked"
    public = keys["app"].private.with_suffix(".pub")
    if krl:
        run("ssh-keygen", "-q", "-k", "-f", str(revoked), str(public))
    else:
        revoked.write_text(public.read_text())
    roots = operators(tmp_path, (keys["app"], "app"), (keys["guard"], "guardrail"), revoked="revoked")
    assert "error[BH1104]" in refusal(judge, start, roots=roots)
    repository.git("reset", "-q", "--hard", start)
    repository.commit({"README.md": "x"}, keys["guard"])
    assert judge(start, roots=roots)


def test_refuse_a_revoked_openpgp_key(repository, judge, tmp_path):
    signer = pgp_signer(tmp_path, "rev")
    try:
        start = repository.head()
        repository.commit({"README.md": "x"}, signer)
        written = (signer.home / "openpgp-revocs.d" / f"{signer.fingerprint}.rev").read_text()
        gpg(signer.home, "--import", stdin=written.replace(":-----BEGIN", "-----BEGIN").encode())
        assert "BH1104" in refusal(judge, start, roots=operators(tmp_path, (signer, "guardrail")))
    finally:
        close_agent(signer)


@pytest.mark.parametrize("kind", ["ssh", "openpgp"])
def test_refuse_a_signature_taken_from_another_commit(repository, keys, pgp, judge, tmp_path, kind):
    signer = keys["guard"] if kind == "ssh" else pgp
    start = repository.head()
    repository.commit({"README.md": "x"}, signer)
    raw = repository.git("cat-file", "commit", "HEAD") + "\n"
    forged = repository.git(
        "hash-object", "-t", "commit", "-w", "--stdin", stdin=raw.replace("change", "chango").encode()
    )
    assert "BH1105" in refusal(judge, start, forged, roots=operators(tmp_path, (signer, "guardrail")))


def test_the_key_of_a_signature_is_read_from_the_commit(repository, keys):
    repository.commit({"README.md": "x"}, keys["app"])
    raw = repository.git("cat-file", "commit", "HEAD").encode() + b"\n"
    assert signing_key(raw) == keys["app"].public
    assert signing_key(b"tree x\n\nmessage\n") == ""
    forged = (
        b"gpgsig -----BEGIN SSH SIGNATURE-----\n " + base64.b64encode(b"SSHSIG") + b"\n -----END SSH SIGNATURE-----\n"
    )
    assert signing_key(forged) == ""


# What may be changed


NODE = "apiVersion: bulkhead/v1alpha1\nkind: Node\nmetadata: {name: web-1}\naddresses: [10.0.0.1]\n"
CHANGES = {
    "a file that is no policy": ({"README.md": "x"}, "app"),
    "an app policy": ({"shop.yaml": policy(body="externals: {}\n") + never("yes")}, "app"),
    "a new app policy": ({"more.yaml": policy("more")}, "app"),
    "a new app policy with an invariant": ({"more.yaml": policy("more") + never("yes")}, "app"),
    "a comment in a platform policy": ({"base.yaml": "# hm\n" + policy("base", "platform")}, "app"),
    "a policy that moves to another file": ({"base.yaml": None, "b/base.yml": policy("base", "platform")}, "app"),
    "a platform policy": ({"base.yaml": policy("base", "platform", "externals: {}\n")}, "plat"),
    "a platform policy that goes": ({"base.yaml": None}, "plat"),
    "a platform policy that becomes one of an app": ({"base.yaml": policy("base")}, "plat"),
    "an app policy that becomes one of the platform": (
        {"shop.yaml": policy("shop", "platform") + never("yes")},
        "plat",
    ),
    "a new node": ({"n.yaml": NODE}, "plat"),
    "a file of a node that cannot be read": ({"n.yaml": NODE + "key: [\n"}, "plat"),
    "a guardrail": ({"guard.yaml": policy("guard", "guardrail", "externals: {}\n")}, "guard"),
    "a new guardrail": ({"more.yaml": policy("more", "guardrail")}, "guard"),
    "a second document that is a guardrail": (
        {"shop.yaml": policy() + never("yes") + "---\n" + policy("more", "guardrail")},
        "guard",
    ),
    "the repository": ({"bulkhead.yaml": BULKHEAD + "hosts: {mode: enforce}\n"}, "guard"),
    "the key of a signer": ({".signers/AB.asc": "x"}, "guard"),
    "an invariant that goes": ({"shop.yaml": policy()}, "guard"),
    "an invariant that changes": ({"shop.yaml": policy() + never("no")}, "guard"),
    "a policy with an invariant that goes": ({"shop.yaml": None}, "guard"),
    "a cluster-wide policy": (
        {"c.yaml": "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\n"},
        "guard",
    ),
    "a namespaced policy of a cluster": (
        {"n.yaml": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: n, namespace: x}\n"},
        "app",
    ),
    "a file that cannot be read": ({"more.yaml": "a: [\n"}, "app"),
    "a file that cannot be read and speaks of guardrails": ({"more.yaml": "level: guardrail: [\n"}, "guard"),
    "a guardrail that is broken": ({"guard.yaml": "a: [\n"}, "guard"),
    "a level that is none": ({"more.yaml": policy("more", "gard")}, "guard"),
    "a file that is too large": ({"more.yaml": "#" * ((1 << 20) + 1)}, "guard"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_needs_a_signer_of_its_level_and_no_more(repository, keys, judge, what):
    files, needs = CHANGES[what]
    start = repository.head()
    names = [name for name, _ in FULL]
    allowed = names[: names.index(needs) + 1]
    for name in names:
        repository.git("reset", "-q", "--hard", start)
        repository.commit(files, keys[name])
        if name in allowed:
            assert judge(start)
        else:
            assert "BH1106" in refusal(judge, start)


def test_a_refusal_names_the_document_its_level_the_signer_and_his(repository, keys, judge):
    start = repository.head()
    commit = repository.commit({"base.yaml": "\n\n" + policy("base", "platform", "externals: {}\n")}, keys["app"])
    text = refusal(judge, start)
    assert f"commit {commit[:7]} changes policy `base`, which needs a signer of level `platform`" in text
    assert "`app` has `app`" in text
    assert f"--> base.yaml:3@{commit[:7]}" in text


def test_a_change_that_is_undone_by_the_next_commit_needs_its_signer_all_the_same(repository, keys, judge):
    start = repository.head()
    repository.commit({"guard.yaml": policy("guard", "guardrail", "externals: {}\n")}, keys["app"])
    repository.commit(BASE, keys["guard"])
    assert "BH1106" in refusal(judge, start)


# Merges


def test_a_merge_is_signed_for_what_differs_from_each_parent(repository, keys, judge):
    start = repository.head()
    repository.git("checkout", "-q", "-b", "side")
    repository.commit({"more.yaml": policy("more")}, keys["app"])
    repository.git("checkout", "-q", "main")
    repository.commit({"base.yaml": policy("base", "platform", "externals: {}\n")}, keys["plat"])
    kept = repository.head()
    merged = repository.merge("side", keys["plat"])
    assert [one.commit for one in judge(start)][-1] == merged
    repository.git("reset", "-q", "--hard", kept)
    repository.merge("side", keys["app"])
    assert "BH1106" in refusal(judge, start)
    repository.git("reset", "-q", "--hard", kept)
    unsigned = repository.merge("side")
    assert f"commit {unsigned[:7]} is not signed" in refusal(judge, start)


def test_a_merge_that_brings_back_what_a_guardrail_mended_is_refused(repository, keys, judge):
    start = repository.head()
    repository.git("branch", "old")
    repository.commit({"guard.yaml": policy("guard", "guardrail", "externals: {}\n")}, keys["guard"])
    last = repository.head()
    repository.git("checkout", "-q", "old")
    repository.commit({"more.yaml": policy("more")}, keys["app"])
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "-s", "ours", "--no-ff", "-S", "-m", "m", "old", signer=keys["app"])
    repository.git("checkout", "-q", "old", "--", ".")
    repository.git("commit", "-q", "--amend", "--no-edit", "-S", signer=keys["app"])
    assert repository.git("show", "HEAD:guard.yaml") == repository.git("show", f"{start}:guard.yaml")
    assert "policy `guard`" in refusal(judge, last)


def test_commits_of_a_branch_that_is_merged_are_signed_too(repository, keys, judge):
    start = repository.head()
    repository.git("checkout", "-q", "-b", "side")
    unsigned = repository.commit({"more.yaml": policy("more")})
    repository.git("checkout", "-q", "main")
    repository.commit({"README.md": "x"}, keys["guard"])
    repository.merge("side", keys["guard"])
    assert f"commit {unsigned[:7]} is not signed" in refusal(judge, start)


# Signers of the repository


def signed_by(*signers: tuple[SshSigner | PgpSigner, str]) -> str:
    lines = [f'  - {{name: {one.name}, level: {level}, key: "{one.written}"}}\n' for one, level in signers]
    return BULKHEAD + "signers:\n" + "".join(lines)


@pytest.fixture
def governed(repository, keys) -> SignedRepository:
    """A repository that names its signers."""
    repository.commit({"bulkhead.yaml": signed_by(*((keys[name], level) for name, level in FULL))})
    return repository


def test_signers_of_the_accepted_commit_are_in_force(governed, keys, judge):
    start = governed.head()
    governed.commit({"shop.yaml": policy("shop", body="externals: {}\n") + never("yes")}, keys["app"])
    assert [one.signer.name for one in judge(start, roots=Roots())] == ["app"]
    unsigned = governed.commit({"README.md": "x"})
    assert f"commit {unsigned[:7]} is not signed" in refusal(judge, start, roots=Roots())


def test_an_openpgp_signer_of_the_repository_has_his_key_in_it(repository, pgp, judge):
    key = {f".signers/{pgp.fingerprint}.asc": pgp.export()}
    start = repository.commit({"bulkhead.yaml": signed_by((pgp, "guardrail")), **key})
    repository.commit({"README.md": "x"}, pgp)
    assert [one.signer.name for one in judge(start, roots=Roots())] == ["pia"]


def test_a_commit_does_not_bring_its_own_signer(governed, keys, judge):
    start = governed.head()
    governed.commit({"bulkhead.yaml": signed_by((keys["stranger"], "guardrail"))}, keys["stranger"])
    assert "BH1102" in refusal(judge, start, roots=Roots())


def test_a_new_signer_counts_for_what_follows_however_often_a_host_looks(governed, keys, judge):
    start = governed.head()
    everybody = [(keys[name], level) for name, level in FULL]
    governed.commit({"bulkhead.yaml": signed_by(*everybody, (keys["stranger"], "app"))}, keys["guard"])
    governed.commit({"more.yaml": policy("more")}, keys["stranger"])
    assert [one.signer.name for one in judge(start, roots=Roots())] == ["guard", "stranger"]


def test_a_signer_who_was_removed_does_not_count_for_what_follows(governed, keys, judge):
    start = governed.head()
    governed.commit({"bulkhead.yaml": signed_by((keys["guard"], "guardrail"))}, keys["guard"])
    governed.commit({"more.yaml": policy("more")}, keys["app"])
    assert "BH1102" in refusal(judge, start, roots=Roots())


def test_signers_that_cannot_be_read_are_not_taken_for_none(governed, keys, judge):
    start = governed.commit({"bulkhead.yaml": "broken: [\n"})
    governed.commit({"README.md": "x"})
    with pytest.raises(UnreachableError, match="signers of commit"):
        judge(start, roots=Roots())


# The first commit


def test_the_first_commit_needs_no_signature_unless_the_operator_names_signers(governed, judge):
    assert judge("", roots=Roots()) == ()
    assert "BH1101" in refusal(judge, "")


def test_the_first_commit_is_vouched_for_by_somebody_who_may_write_everything(repository, keys, judge):
    repository.commit({"README.md": "x"}, keys["app"])
    assert "BH1106" in refusal(judge, "")
    repository.commit({"README.md": "y"}, keys["guard"])
    assert [one.signer.name for one in judge("")] == ["guard"]


def test_what_follows_the_commit_that_is_vouched_for_is_judged_like_any_other(repository, keys, judge):
    repository.commit({"README.md": "y"}, keys["guard"])
    repository.commit({"shop.yaml": policy("shop", body="externals: {}\n") + never("yes")}, keys["app"])
    assert [one.signer.name for one in judge("")] == ["guard", "app"]
    repository.commit({"base.yaml": policy("base", "platform", "externals: {}\n")}, keys["app"])
    assert "BH1106" in refusal(judge, "")


# Descent


def test_refuse_an_older_commit_and_a_rewritten_one(repository, keys, judge):
    first = repository.commit({"README.md": "x"}, keys["guard"])
    second = repository.commit({"README.md": "y"}, keys["guard"])
    assert "BH1107" in refusal(judge, second, first)
    repository.git("reset", "-q", "--hard", first)
    other = repository.commit({"README.md": "z"}, keys["guard"])
    assert f"commit {other[:7]} does not descend from {second[:7]}" in refusal(judge, second, other)
    assert "BH1107" in refusal(judge, "1" * 40, other, roots=Roots())


def test_a_graft_does_not_make_a_commit_descend(repository, judge):
    first = repository.commit({"README.md": "x"})
    repository.git("checkout", "-q", "--orphan", "other")
    other = repository.commit({"README.md": "z"})
    (repository.path / ".git" / "info" / "grafts").write_text(f"{other} {first}\n")
    repository.git("replace", "--graft", other, first)
    assert "BH1107" in refusal(judge, first, other, roots=Roots())


def test_refuse_more_commits_than_are_judged_in_one_go(repository, keys, judge, monkeypatch):
    monkeypatch.setattr(history, "COMMITS_MAX", 2)
    start = repository.head()
    for number in range(3):
        repository.commit({"README.md": str(number)}, keys["guard"])
    assert "BH1108" in refusal(judge, start)
    assert judge(start, f"{repository.head()}~1")


def test_configuration_of_the_repository_runs_nothing(repository, keys, judge, tmp_path):
    marker = tmp_path / "executed"
    start = repository.head()
    commit = repository.commit({"README.md": "x"}, keys["guard"])
    for key in ("gpg.program", "gpg.ssh.program", "gpg.openpgp.program", "gpg.ssh.defaultKeyCommand", "diff.external"):
        repository.git("config", key, f"touch {marker}; true")
    repository.git("config", "log.showRoot", "false")
    assert judge(start, commit)
    assert not marker.exists()


# The operator's file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "name nobody"),
        ("x = 1\n", "nothing else"),
        ("[[signer]]\n", "`name` is a text"),
        ('[[signer]]\nname = "a"\nlevel = "root"\n', "`level` is guardrail, platform or app"),
        ('[[signer]]\nname = "a"\nlevel = "app"\nkey = "ssh-ed25519 AAAA"\n', "`key` is not one"),
        (f'[[signer]]\nname = "a"\nlevel = "app"\nkey = "openpgp:{"A" * 40}"\n', "`public_key` is the file"),
        ('[[signer]]\nname = "a"\nlevl = "app"\n', "known are"),
        ("[[signer]\n", "not valid TOML"),
    ],
)
def test_an_operators_file_that_says_something_else_is_refused(tmp_path, text, problem):
    path = tmp_path / "signers.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_operators(path)


def test_an_operators_file_or_revocations_that_are_not_there_are_an_error(tmp_path, keys):
    with pytest.raises(UnreachableError, match="cannot read the signers"):
        read_operators(tmp_path / "nothing.toml")
    with pytest.raises(UnreachableError, match="revoked keys"):
        operators(tmp_path, (keys["app"], "app"), revoked="nothing")


def test_a_date_that_is_none_is_refused(tmp_path, keys):
    with pytest.raises(UsageError, match="`valid_after` and `valid_before`"):
        operators(tmp_path, (keys["app"], "app"), more="valid_before = 5")


@pytest.mark.parametrize(
    ("program", "problem"), [("ssh-keygen", "ssh-keygen is not installed"), ("gpg", "gpg is not installed")]
)
def test_a_missing_program_is_one_clear_error(repository, keys, pgp, judge, tmp_path, monkeypatch, program, problem):
    start = repository.head()
    signer = keys["guard"] if program == "ssh-keygen" else pgp
    repository.commit({"README.md": "x"}, signer)
    roots = operators(tmp_path, (signer, "guardrail"))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "git").symlink_to("/usr/bin/git")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(UnreachableError, match=problem):
        History(repository.path, roots, tmp_path / "k").judge(start, run_head(repository, monkeypatch))


def run_head(repository: SignedRepository, monkeypatch) -> str:
    return (repository.path / ".git" / "refs" / "heads" / "main").read_text().strip()
