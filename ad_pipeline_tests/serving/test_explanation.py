"""An explanation adds up to the score, names what fell into slots, and needs the bundle only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline import cli
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.features.encoding import LookedUp, request_columns, slots
from ad_pipeline.serving.audit import Audit
from ad_pipeline.serving.bundle import Bundle, open_bundle
from ad_pipeline.serving.explanation import (
    NO_WEIGHT,
    NOT_LISTED,
    NOT_NAMED,
    NOT_SEEN,
    UnreadableRequest,
    canary,
    explain,
    explanation_lines,
    kernel_sum,
    read_request,
)
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds


def printed_table(lines: list[str]) -> list[dict[str, str]]:
    """Read the first goal's table of contributions back out of the text."""
    at = next(place for place, line in enumerate(lines) if line.startswith("  feature "))
    header = lines[at]
    starts = [header.index(name) for name in ("feature", "value", "slot", "weight", "n ", "last")]
    rows = []
    for line in lines[at + 1 :]:
        if line.startswith("  intercept"):
            break
        cells = [
            line[start:end].strip()
            for start, end in zip(starts, [*starts[1:], len(line)], strict=True)
        ]
        rows.append(
            dict(zip(("feature", "value", "slot", "weight", "n", "rest"), cells, strict=True))
        )
    return rows


@pytest.mark.parametrize("number", range(4))
def test_printed_contributions_add_up_to_the_score_to_the_last_bit(
    world: worlds.World, number: int
) -> None:
    explained = explain(world.bundle, canary(world.bundle, number), ["click"])
    lines = list(explanation_lines(explained))
    rows = printed_table(lines)
    assert [row["feature"] for row in rows] == list(worlds.CONTRACT.token_names)
    weights = [float(row["weight"]) for row in rows]
    scores = world.bundle.manifest["canaries"]["scores"]
    score = scores["logits"]["click"]["online"][number]
    assert kernel_sum(0.0, weights) == score
    assert sum(weights) == pytest.approx(score, abs=1e-12)
    assert f"  sum {score!r} " in "\n".join(lines)
    assert f"expert batch: log odds {scores['logits']['click']['batch'][number]!r}" in lines
    assert lines[-1] == f"probability {scores['probabilities']['click'][number]!r}"
    altered = [weights[0] + 1e-9, *weights[1:]]
    assert kernel_sum(0.0, altered) != score


def test_a_request_is_explained_as_a_scorer_scores_it(world: worlds.World, tmp_path: Path) -> None:
    decision = Scorer(world.bundle, world.due).score(world.requests[5])
    for given in (decision.features, {"features": decision.features, "scores": {}}):
        path = tmp_path / "request.json"
        path.write_text(json.dumps(given))
        explained = explain(world.bundle, read_request(path))
        assert explained.fallbacks == ()
        for found in explained.goals:
            assert found.logits == decision.logits[found.goal]
            assert found.probability == decision.probabilities[found.goal]
            assert found.score == found.logits["online"]
            assert found.stages["probability"] == found.probability
    blind = Scorer(world.bundle).score(world.requests[5])
    explained = explain(world.bundle, world.requests[5])
    assert {found.goal: found.probability for found in explained.goals} == blind.probabilities
    assert explained.fallbacks == ("no counts in the request: every count is 0",)
    assert explained.not_looked_at == ("not_a_feature",)


def test_every_slot_has_its_weight_its_history_and_all_others_in_it(world: worlds.World) -> None:
    request = dict(world.requests[0])
    columns = request_columns(worlds.CONTRACT, worlds.some_requests(worlds.ROWS, 1))
    linear = world.sources["click"].online.weights
    kept = world.bundle.goals[0].online.slots
    history = world.histories["click"]
    found = explain(world.bundle, request, ["click"]).goals[0]
    own = slots(
        worlds.CONTRACT,
        request_columns(worlds.CONTRACT, [request]),
        LookedUp.nothing(worlds.CONTRACT, 1),
    )[0]
    assert [each.slot for each in found.contributions] == own.tolist()
    shared = 0
    for each in found.contributions:
        assert each.weight == linear[each.slot]
        everything = {
            f"{row['feature']}={row['value']}"
            for row in worlds.tokens_of(columns, np.array([each.slot])).to_pylist()
        }
        if each.weight == 0.0:
            assert (each.remark, each.n, each.collisions) == (NO_WEIGHT, None, ())
            continue
        assert set(each.collisions) == everything - {f"{each.feature}={each.value}"}
        shared += bool(each.collisions)
        place = int(np.searchsorted(kept, each.slot))
        assert each.n == history.n[place] > 0
        assert each.last_update_us == int(history.last_update_hours[place]) * HOUR_US
    assert shared > 0, "so few slots collide"
    assert all(each.remark in ("", NO_WEIGHT) for each in found.contributions)


def test_an_unknown_value_says_so(world: worlds.World) -> None:
    remarks = set()
    for number in range(40):
        request = world.requests[0] | {"publisher": f"nobody-{number}"}
        found = explain(world.bundle, request, ["click"]).goals[0]
        each = next(one for one in found.contributions if one.feature == "publisher")
        assert each.remark in (NO_WEIGHT, NOT_SEEN)
        assert bool(each.collisions) == (each.remark == NOT_SEEN)
        remarks.add(each.remark)
    assert remarks == {NO_WEIGHT, NOT_SEEN}


def test_a_bundle_without_dictionary_or_batch_model_is_explained_by_slots(
    world: worlds.World,
) -> None:
    found = explain(world.young, world.requests[0], ["click"])
    assert found.goals[0].mixture is None
    assert {each.remark for each in found.goals[0].contributions} == {NO_WEIGHT, NOT_NAMED}
    text = "\n".join(explanation_lines(found))
    assert "no mixture: the online expert alone, not calibrated" in text
    assert "missing: no ensemble of click" in text


def _with_limit(world: worlds.World, root: Path, limit: int) -> Bundle:
    columns = request_columns(worlds.CONTRACT, worlds.some_requests(worlds.ROWS, 1))
    audit = Audit.collect(
        {models.goal: models.online for models in world.models},
        world.histories,
        lambda asked: worlds.tokens_of(columns, asked),
        limit,
    )
    return worlds.write(root, world.models, world.requests, world.due.counts, audit=audit)


def test_above_the_limit_the_slots_learnt_least_go_without_names_and_it_is_said(
    world: worlds.World, tmp_path: Path
) -> None:
    whole = world.bundle.manifest["audit"]
    bundle = _with_limit(world, tmp_path, 50)
    audit = bundle.manifest["audit"]
    assert audit["tokens"] <= 50
    assert audit["tokens"] + audit["tokens_left_out"] == whole["tokens"]
    assert audit["collisions"] == whole["collisions"], "those left out are counted too"
    click = world.histories["click"]
    slot = world.bundle.goals[0].online.slots[int(np.argmax(click.n))]
    assert bundle.audit.tokens([slot]) == world.bundle.audit.tokens([slot]) != {slot: []}
    remarks = {
        each.remark
        for number in range(4)
        for each in explain(bundle, canary(bundle, number)).goals[0].contributions
    }
    assert NOT_LISTED in remarks
    text = "\n".join(explanation_lines(explain(bundle, canary(bundle, 0))))
    assert f"{audit['slots_left_out']:,} slots are left out" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "no JSON object"),
        ('{"publisher": 3}', "publisher is 3"),
        ('{"age": "old"}', "could not convert"),
    ],
)
def test_a_request_that_cannot_be_read_is_named(
    world: worlds.World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    said: str,
) -> None:
    path = tmp_path / "request.json"
    path.write_text(content)
    assert cli.main(["explain", "--request", str(path), "--bundle", str(world.bundle.path)]) == 1
    assert said in capsys.readouterr().err


def test_a_canary_or_a_goal_that_is_not_there_is_named(world: worlds.World) -> None:
    with pytest.raises(UnreadableRequest, match="it has 0 to 3"):
        canary(world.bundle, 4)
    with pytest.raises(UnreadableRequest, match="it has click, purchase"):
        explain(world.bundle, {}, ["install"])


FRESH = """
import sys
from pathlib import Path
from ad_pipeline.serving.bundle import open_bundle_folder
from ad_pipeline.serving.explanation import canary, explain, explanation_lines
bundle = open_bundle_folder(Path(sys.argv[1]))
lines = list(explanation_lines(explain(bundle, canary(bundle, 1))))
loaded = set(sys.modules) & {"duckdb", "dagster", "lightgbm", "pandas", "sklearn", "river"}
assert not loaded, loaded
from ad_pipeline.cli import main
assert main(["explain", "--canary", "1", "--bundle", sys.argv[1]]) == 0
"""


def test_the_command_needs_the_folder_and_nothing_else(world: worlds.World, tmp_path: Path) -> None:
    folder = tmp_path / world.bundle.digest
    shutil.copytree(world.bundle.path, folder)
    environment: dict[str, Any] = {"PATH": "/usr/bin", "PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"bundle {world.bundle.digest}" in ran.stdout
    assert "== click: probability" in ran.stdout
    assert "== purchase: probability" in ran.stdout
    opened = open_bundle(world.bundles, world.bundle.digest)
    assert "\n".join(explanation_lines(explain(opened, canary(opened, 1)))) in ran.stdout
