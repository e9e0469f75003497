"""Make the pictures of the README anew, from a home in which ``make demo`` has finished.

From the top of the repository, with the tools of ``make setup`` and with Chromium installed::

    .venv/bin/python -m docs.pictures.remake            # home: ./.ad_pipeline
    .venv/bin/python -m docs.pictures.remake HOME

``asset_graph.png`` is a screenshot of Dagster's own UI, ``metrics.png`` and ``drift.png`` are what
the assets ``evaluation/report`` and ``monitoring/drift`` drew of ``marketplace``, ``clocks.png`` is
the worked impression of ``docs/clocks.md``. The home is only read. Pictures of the tables' contents
do not belong here: they are the report's.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline_tests.defs.live import chromium, webserver
from docs.pictures import worked_impression

HERE = Path(__file__).resolve().parent

DATASET = "marketplace"

LEFT_OUT = ("accounting", "auctions", "duplicates", "held_engagements", "quarantine",
            "user_activities")  # fmt: skip
"""Tables of ``events`` that no other asset reads: they would only make the picture wide."""

WIDTH, HEIGHT, SCALE = 1600, 1400, 2.0
"""Of the browser's window, and its pixels a point."""

MARGIN = 24

COLOURS = 128
"""A picture of boxes and lines needs no more, and is a third of the size."""

HIDE_CONTROLS = """document.querySelectorAll('button[class*="SVGViewport_iconButton"]').forEach(
    button => button.parentElement.parentElement.style.visibility = "hidden")"""
"""The zoom's slider would lie on the graph."""


def main() -> int:
    """Write the pictures beside this module.

    Returns
    -------
    int
        0; 1 if the home holds no finished demo.
    """
    parser = argparse.ArgumentParser(description="Make the pictures of the README anew.")
    parser.add_argument("home", nargs="?", type=Path, default=Path(".ad_pipeline"))
    home: Path = parser.parse_args().home.resolve()
    deployment = Deployment(load_dataset(DATA_FOLDER / DATASET / "dataset.yaml"), home / DATASET)
    (HERE / "clocks.png").write_bytes(worked_impression.picture())
    for name in ("metrics.png", "drift.png"):
        drawn = deployment.reports / name
        if not drawn.is_file():
            sys.stderr.write(f"{drawn} is not there: `make demo AD_PIPELINE_HOME={home}` first\n")
            return 1
        shutil.copyfile(drawn, HERE / name)
    photograph_graph(deployment, HERE / "asset_graph.png")
    return 0


def photograph_graph(deployment: Deployment, path: Path) -> None:
    """Write a picture of the asset graph, every room unfolded.

    The UI's way to a vertical graph is a menu, and there is no sign that the drawing is done: hence
    the pauses.
    """
    unwanted = " or ".join(f'key:"events/{name}"' for name in LEFT_OUT)
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "AD_PIPELINE_DATASET": DATASET,
            "AD_PIPELINE_HOME": str(deployment.home.parent),
            "DAGSTER_HOME": str(deployment.home / "dagster_home"),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "PYTHONWARNINGS": "ignore",
        }
        with (
            webserver(environment, Path(scratch) / "webserver.log") as address,
            chromium(WIDTH, HEIGHT, SCALE) as context,
        ):
            page = context.new_page()
            page.add_init_script("localStorage.setItem('dagster-nav-collapsed', 'true')")
            page.goto(f"{address}/asset-groups~{quote(f'not ({unwanted})', safe='')}/")
            page.get_by_text("serving", exact=True).filter(visible=True).last.wait_for()
            page.mouse.click(WIDTH - 300, HEIGHT - 100, button="right")
            page.get_by_text("Change graph to vertical orientation").filter(visible=True).click()
            time.sleep(2)
            page.keyboard.press("Alt+KeyE")
            time.sleep(3)
            unfolded = page.url
            page.goto("about:blank")
            page.goto(unfolded)  # fits the window
            time.sleep(6)
            page.evaluate(HIDE_CONTROLS)
            nodes = page.locator("foreignObject").filter(visible=True)
            boxes = [box for node in nodes.all() if (box := node.bounding_box())]
            left = min(box["x"] for box in boxes) - MARGIN
            top = min(box["y"] for box in boxes) - MARGIN
            page.screenshot(
                path=path,
                clip={
                    "x": left,
                    "y": top,
                    "width": max(box["x"] + box["width"] for box in boxes) + MARGIN - left,
                    "height": max(box["y"] + box["height"] for box in boxes) + MARGIN - top,
                },
            )
    with Image.open(path) as photograph:
        photograph.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
