"""What a workload may be required to be, and what nobody could ever check."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bulkhead.dataplane import bundle
from bulkhead.dataplane.compile import compile_commit
from bulkhead.policy.alterations import alterations
from bulkhead.policy.model import Requirement

DIGEST = "sha256:" + "0123456789abcdef" * 4
WORKLOAD = "workloads:\n  web: {match: {unit: nginx.service}, posture: {POSTURE}}\n"


def workload(posture: str) -> str:
    return WORKLOAD.replace("{POSTURE}", posture)


@pytest.mark.parametrize(
    ("written", "required"),
    [
        (f"{{digest: [{DIGEST}, '{DIGEST}']}}", [("digest", (DIGEST,))]),
        ("{hardening: {NoNewPrivileges: true}}", [("hardening.NoNewPrivileges", ("true",))]),
        ("{hardening: {Seccomp: filter}}", [("hardening.Seccomp", ("filter",))]),
        ("{hardening: {CapabilityBoundingSet: []}}", [("hardening.CapabilityBoundingSet", ())]),
        (
            "{hardening: {CapabilityBoundingSet: [CAP_KILL, CAP_BPF]}}",
            [("hardening.CapabilityBoundingSet", ("CAP_KILL", "CAP_BPF"))],
        ),
        (
            '{package: {nginx: ">=1:1.22-9+deb12u1", libstdc++6: "= 12.2.0-14"}}',
            [("package.nginx", (">= 1:1.22-9+deb12u1",)), ("package.libstdc++6", ("= 12.2.0-14",))],
        ),
        ('{kernel: ">=  6.1.20"}', [("kernel", (">= 6.1.20",))]),
        ("{node: [disk, patched, disk]}", [("node.disk", ("ok",)), ("node.patched", ("ok",))]),
        ('{node: [disk], kernel: "< 7"}', [("kernel", ("< 7",)), ("node.disk", ("ok",))]),
    ],
)
def test_what_is_required_is_read_in_one_order(written: str, required: list, parsed) -> None:
    (found,) = parsed(workload(written)).workloads
    assert found.posture == tuple(Requirement(*one) for one in required)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("{}", "BH0209"), ("[]", "BH0207"), ("{digest: []}", "BH0209"), (f"{{digest: {DIGEST}}}", "BH0207"),
        ("{digest: ['sha256:00']}", "BH0319"), (f"{{digest: [{DIGEST.upper()}]}}", "BH0319"),
        (f"{{digest: [{DIGEST}0]}}", "BH0319"), ("{digest: ['md5:00']}", "BH0319"),
        ("{hardening: {}}", "BH0209"), ("{hardening: {ProtectSystem: strict}}", "BH0205"),
        ("{hardening: {NoNewPrivileges: false}}", "BH0321"), ("{hardening: {Seccomp: strict}}", "BH0321"),
        ("{hardening: {CapabilityBoundingSet: [KILL]}}", "BH0321"),
        ("{hardening: {CapabilityBoundingSet: CAP_KILL}}", "BH0207"),
        ("{package: {}}", "BH0209"), ("{package: nginx}", "BH0207"), ("{package: {Nginx: '> 1'}}", "BH0322"),
        ("{package: {../nginx: '> 1'}}", "BH0322"), ("{package: {nginx: '1.22'}}", "BH0320"),
        ("{package: {nginx: '~> 1'}}", "BH0320"), ("{package: {nginx: '> 1-2 3'}}", "BH0320"),
        ("{package: {nginx: '> 99999999999999999999:1'}}", "BH0320"), ("{package: {nginx: 1.22}}", "BH0111"),
        ("{kernel: '>= six'}", "BH0320"), ("{kernel: '>= 6.1-rc1'}", "BH0320"), ("{kernel: '>= 6\u0661'}", "BH0320"),
        ("{kernel: ['>= 6']}", "BH0207"), ("{node: disk}", "BH0207"), ("{node: []}", "BH0209"),
        ("{node: [../../etc]}", "BH0301"), ("{node: [a/b]}", "BH0301"), ("{tpm: [0]}", "BH0205"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(written: str, code: str, refused) -> None:
    assert [each.code for each in refused(workload(written))] == [code]


def test_posture_is_no_part_of_other_things(refused) -> None:
    (found,) = refused("externals:\n  s3: {cidr: [192.0.2.0/24], posture: {node: [disk]}}\n")
    assert found.code == "BH0205"


def test_a_pod_has_no_posture(refused) -> None:
    (found,) = refused("workloads:\n  web: {match: {namespace: shop}, posture: {node: [disk]}}\n")
    assert (found.code, found.loc.column) == ("BH0510", 44)


def test_a_change_of_posture_is_told(parsed) -> None:
    before = parsed("workloads:\n  web: {match: {unit: nginx.service}}\n")
    after = parsed(workload("{node: [disk], hardening: {CapabilityBoundingSet: []}}"))
    (found,) = alterations(before, after, ())
    assert [tuple(one) for one in found.details] == [
        ("posture", "", "hardening.CapabilityBoundingSet: none, node.disk: ok")
    ]


def test_posture_reaches_the_agent_as_it_was_written(parsed) -> None:
    policy_set = parsed(workload(f'{{digest: [{DIGEST}], kernel: ">= 6.1", node: [disk]}}'))
    compiled = compile_commit(policy_set, "web-1", datetime(2026, 7, 1, tzinfo=UTC))
    assert bundle.unpack(bundle.pack(compiled)).workloads == compiled.workloads
    assert compiled.workloads[0].posture == policy_set.workloads[0].posture != ()
