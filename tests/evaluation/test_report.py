"""The report is one page that shows the numbers and needs nothing else."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from cyto_dl.evaluation import evaluate, write_report, write_unmeasured
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.evaluation.objects import of_cells, write_cells


class Page(HTMLParser):
    """Tags that are opened and not closed, and where the page would load something from."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.styles = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(params=["2d", "3d", "objects"])
def evaluation(request, tmp_path):
    if request.param == "objects":
        manifest = write_cells(tmp_path, changes=("", "miss", "split", "empty"))
        config, predictor = of_cells(manifest)
        return evaluate(predictor, config, manifest=manifest)
    config = experiment(
        write_images(tmp_path, int(request.param[0]), splits=("test", "test", "valid")), int(request.param[0])
    )
    predictor = predictor_of(config)
    return evaluate(predictor, config, manifest=tmp_path / "manifest.csv")


def test_the_report_is_a_page_that_loads_nothing_from_elsewhere(evaluation, tmp_path):
    page = Page(write_report(evaluation, tmp_path / "report.html").read_text())
    assert page.open == []
    assert page.addresses
    assert "http://" not in page.styles and "https://" not in page.styles and "url(" not in page.styles
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_it_shows_every_metric_image_and_where_the_model_comes_from(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    for name, value in evaluation.summary.items():
        assert f"{value:.4f}" in text, name
    for low, high in evaluation.intervals.values():
        assert f"{low:.4f} – {high:.4f}" in text
    for path in evaluation.images["path"]:
        assert path in text
    assert evaluation.provenance["evaluated_manifest_sha256"] in text
    assert "_target_: cyto_dl.model.MultiTaskIm2Im" in text
    assert "of Otsu's threshold" in html.unescape(text)
    assert "roi_size [" in text  # how the model was run


def test_mean_and_pooled_value_stand_side_by_side_with_their_intervals(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    rows = [re.sub(r"<[^>]+>", " ", row).split("  ") for row in re.findall(r"<tr>(.*?)</tr>", text)]
    metric = next(name for name in evaluation.summary if name.endswith("_pooled")).removesuffix("_pooled")
    row = next(row for row in rows if row[0].strip() == metric.rpartition("/")[2] and len(row) > 6)
    cells = [cell.strip() for cell in row]
    for name, (value, interval) in zip((metric, f"{metric}_pooled"), (cells[1:3], cells[3:5]), strict=True):
        assert value == f"{evaluation.summary[name]:.4f}"
        assert interval == "{:.4f} – {:.4f}".format(*evaluation.intervals[name])


def test_data_curves_and_what_was_taken_for_what_are_shown(evaluation, tmp_path):
    curves = {"epoch": [1, 2], "step": [3, 6], "seconds": [1, 1], "device": ["cpu", "cpu"], "valid/loss": [2.0, 1.0]}
    source = {"num_images": 7, "dtypes": {"uint16": 7}, "num_channels": [1]}
    how = {"curves": pd.DataFrame(curves), "fingerprint": {"columns": {"raw": source, "seg": source}}}
    text = write_report(evaluation, tmp_path / "report.html", **how).read_text()
    assert Page(text).open == []
    titles = [
        title for title in ("raw, trained on", "raw, split test", "seg, trained on") if f"<th>{title}</th>" in text
    ]
    assert len(titles) == 3
    assert "2 epochs, 6 steps" in text and 'aria-label="loss over epochs, validation"' in text
    for confusion in evaluation.confusion.values():
        assert f"in {confusion.unit}" in text
        assert f"{confusion.matrix[0, 0]:,}" in text
    assert len(evaluation.confusion) == 1  # an intensity is not taken for another one
    numbers = ", ".join(f"{split} {number}" for split, number in evaluation.splits.items())
    assert f"Rows of the evaluated manifest: {numbers}" in text


def test_where_there_are_no_curves_and_no_fingerprint_the_report_says_so(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    assert "There are none: the folder of the training" in text
    assert "How the training data looked is not known" in text


def test_every_metric_of_several_images_is_drawn(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    for column in evaluation.images.columns:
        head, _, metric = column.partition("/")
        if metric and "otsu" not in metric and evaluation.images[column].notna().sum() > 1:
            assert f'aria-label="{head}: how {metric} is spread over' in text


def test_of_a_stack_the_shown_plane_is_named(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    assert bool(re.search(r"plane \d+ of 10", text)) == ("spatial_dims: 3" in text)


def test_pictures_and_drawings_are_described_for_those_who_do_not_see_them(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    assert all(re.search(r'alt="[^"]+"', picture) for picture in re.findall(r"<img [^>]+>", text))
    assert all(re.search(r'aria-label="[^"]+"', drawing) for drawing in re.findall(r"<svg [^>]+>", text))


def test_thousands_of_images_make_no_page_that_a_browser_is_slow_with(evaluation, tmp_path):
    many = replace(evaluation, images=pd.concat([evaluation.images] * 5000, ignore_index=True))
    path = write_report(many, tmp_path / "report.html")
    assert f"The first 500 of {len(many.images)}" in path.read_text()
    assert path.stat().st_size < 2e6  # bytes


def test_metrics_that_no_image_defines_leave_a_page_that_reads_well(evaluation, tmp_path):
    columns = [column for column in evaluation.images if "/" in column]
    undefined = replace(
        evaluation,
        images=evaluation.images.assign(**dict.fromkeys(columns, float("nan"))),
        summary={},
        intervals={},
        figures={head: [] for head in evaluation.figures},
        confusion={},
    )
    text = write_report(undefined, tmp_path / "report.html").read_text()
    assert Page(text).open == []
    assert "Here no image defines a metric of this head" in text
    assert not re.search(r"\bnan\b", text)


def test_a_model_that_cannot_be_measured_has_a_page_with_the_reason_and_its_curves(tmp_path):
    curves = {"epoch": [1], "step": [3], "seconds": [1], "device": ["cpu"], "train/loss": [2.0]}
    how = {"name": "<denoise>", "split": "test", "reason": "no image has a target"}
    path = write_unmeasured(tmp_path / "report.html", **how, curves=pd.DataFrame(curves))
    text = path.read_text()
    assert Page(text).open == []
    assert "no image has a target" in text and "1 epoch, 3 steps" in text and "<denoise>" not in text


def test_names_from_the_data_cannot_break_the_page(evaluation, tmp_path):
    evaluation.images.loc[0, "path"] = "<script>alert(1)</script>.tif"
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    assert not re.search(r"<script", text)


def test_intervals_of_few_images_are_said_to_be_too_short(tmp_path):
    config = experiment(write_images(tmp_path, splits=("test",) * 6))
    few = evaluate(predictor_of(config), config, manifest=tmp_path / "manifest.csv")
    assert "take these as too short" not in write_report(few, tmp_path / "report.html").read_text()
    images = replace(few, images=few.images[:5])
    assert "Of 5 images" in write_report(images, tmp_path / "report.html").read_text()


def test_one_image_makes_a_report_without_intervals(tmp_path):
    config = experiment(write_images(tmp_path))
    evaluation = evaluate(predictor_of(config), config, manifest=tmp_path / "manifest.csv", split="valid")
    assert evaluation.intervals == {}
    assert "one image" in write_report(evaluation, tmp_path / "report.html").read_text()
