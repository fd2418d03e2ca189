from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from cv_hf.data import CODES, Findings
from cv_hf.data.findings import SEVERITIES, table
from cv_hf.errors import DataError


def test_each_file_counts_once_per_code():
    findings = Findings()
    for _ in range(3):
        findings.add("sixteen-bit", "a.png")
        findings.add("unreadable-image", "a.png", "truncated")
    findings.add("sixteen-bit", "b.png")
    assert (findings.count("sixteen-bit"), findings.count("unreadable-image"), len(findings)) == (2, 1, 3)
    assert findings.count("missing-label") == 0
    assert list(findings) == ["unreadable-image", "sixteen-bit"]


def test_the_first_twenty_names_are_kept_and_all_are_counted():
    findings = Findings()
    for index in range(50):
        findings.add("missing-label", f"{index}.png", "why" if index == 3 else "")
    entry = json.loads(json.dumps(findings.to_dict()))["missing-label"]
    assert entry["count"] == 50
    assert entry["files"] == [f"{index}.png" for index in range(20)]
    assert entry["reasons"] == {"3.png": "why"}
    assert (entry["severity"], entry["effect"]) == ("error", "dropped")
    assert findings.summary().endswith("0.png, 1.png, 2.png and 47 more")


def test_merging_what_two_processes_found_counts_a_file_once():
    one, two = Findings(), Findings()
    one.add("sixteen-bit", "a.png")
    two.add("sixteen-bit", "a.png")
    two.add("sixteen-bit", "b.png")
    one.merge(pickle.loads(pickle.dumps(two)))
    assert one.to_dict()["sixteen-bit"]["files"] == ["a.png", "b.png"]
    assert two.count("sixteen-bit") == 2


def test_unknown_codes_are_refused_and_all_codes_are_explained():
    with pytest.raises(KeyError):
        Findings().add("unredable-image", "a.png")
    assert all(code.meaning and code.effect in ("dropped", "repaired", "noted") for code in CODES.values())
    # What is dropped is an error, and the table and every list begin with those.
    assert all(code.severity == "error" for code in CODES.values() if code.effect == "dropped")
    severities = [code.severity for code in CODES.values()]
    assert severities == sorted(severities, key=list(SEVERITIES).index)


def test_stop_refuses_the_sample_by_name():
    findings = Findings()
    findings.drop("unreadable-image", "a.png", "truncated", "skip")
    assert findings.count("unreadable-image") == 1
    with pytest.raises(DataError, match=r"a\.png: truncated \(unreadable-image\)"):
        Findings().drop("unreadable-image", "a.png", "truncated", "stop")


def test_no_findings():
    assert (Findings().summary(), Findings().to_dict(), len(Findings())) == ("", {}, 0)


def test_the_table_of_the_documentation_is_current():
    assert (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8") == table() + "\n"


def test_counts_by_severity():
    findings = Findings()
    for code, name in (("box-outside", "a"), ("box-outside", "b"), ("mask-void", "a"), ("gapped-ids", "a")):
        findings.add(code, name, "why" if name == "b" else "")
    assert findings.by_severity() == {"error": 2, "warning": 1, "note": 1}
    assert findings.reasons("box-outside") == {"a": "", "b": "why"}
    assert findings.reasons("box-clipped") == {}
