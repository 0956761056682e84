"""The board asks only for what the server exports."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from helpers_scripted_engine import ScriptedEngine
from octavo.server.exposition import Exporter
from octavo.server.metrics import Metrics

BOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "deploy/grafana/octavo.json").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
QUERIES += [variable["query"] for variable in BOARD["templating"]["list"] if variable["type"] == "query"]
OF_THE_TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""
NAME = re.compile(r"(?<![\w$\"])(?:octavo:|http_|process_)\w+")


def exported() -> dict[str, set[str]]:
    """Series -> labels."""
    metrics, registry = Metrics(300), CollectorRegistry()
    metrics.http("GET", "/v1/models", 200, 0.1)
    registry.register(Exporter(ScriptedEngine(), metrics, "tiny", "octavo", lambda: True))
    ProcessCollector(registry=registry)
    return {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}


def test_each_query_names_exported_series_with_their_labels() -> None:
    series = exported()
    for query in QUERIES:
        names = NAME.findall(query)
        assert names, query
        for name in names:
            assert name in series, query
            for label in (*re.findall(rf"{name}{{(\w+)=", query), *re.findall(r"by \((\w+)\)", query)):
                assert label in series[name] | OF_THE_TARGET, query


def test_names_that_other_programs_have_too_are_asked_of_our_servers_only() -> None:
    shared = [query for query in QUERIES for name in NAME.findall(query) if not name.startswith("octavo:")]
    assert len(shared) == 2
    assert all('{job=~"$job"}' in query for query in shared)


@pytest.mark.parametrize("name", ["octavo:nothing", "octavo:num_requests_runnin"])
def test_the_rule_sees_what_is_not_exported(name: str) -> None:
    assert name not in exported()
    assert NAME.findall(f"sum({name}{{a=1}})") == [name]


def test_brackets_and_quotes_close() -> None:
    for query in QUERIES:
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
        assert query.count('"') % 2 == 0


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
