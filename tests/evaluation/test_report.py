"""The report is one page that shows the numbers and needs nothing else."""

import html
import re
from html.parser import HTMLParser

import pytest

from cyto_dl.evaluation import evaluate, write_report
from tests.bundle.tiny import experiment, predictor_of, write_images
from tests.evaluation.objects import of_cells, write_cells


class Page(HTMLParser):
    """Tags that are opened and not closed, and where the page would load something from."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

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


def test_names_from_the_data_cannot_break_the_page(evaluation, tmp_path):
    evaluation.images.loc[0, "path"] = "<script>alert(1)</script>.tif"
    text = write_report(evaluation, tmp_path / "report.html").read_text()
    assert not re.search(r"<script", text)


def test_one_image_makes_a_report_without_intervals(tmp_path):
    config = experiment(write_images(tmp_path))
    evaluation = evaluate(predictor_of(config), config, manifest=tmp_path / "manifest.csv", split="valid")
    assert evaluation.intervals == {}
    assert "one image" in write_report(evaluation, tmp_path / "report.html").read_text()
