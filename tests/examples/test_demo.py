"""The demo must fail when something does not work."""

import pytest

from examples.nuclei import demo


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DEMO", tmp_path)
    monkeypatch.setattr(demo, "seconds", {})
    return tmp_path


def test_a_server_that_refuses_its_bundle_ends_the_demo_with_its_message(folder):
    with pytest.raises(demo.DemoError, match=r"exit code 2(.|\n)*is not a bundle"), demo.server(str(folder)):
        pytest.fail("the server cannot be ready")


def test_a_stage_that_fails_ends_the_demo_with_its_command():
    with pytest.raises(demo.DemoError, match="training ended with exit code 1: false"):
        demo.run("training", ["false"])


@pytest.mark.parametrize(("dice", "otsu", "code"), [(0.93, 0.89, 0), (0.89, 0.88, 1), (0.93, 0.94, 1)])
def test_the_exit_code_says_whether_the_model_is_good_enough(dice, otsu, code, folder, monkeypatch, capsys):
    summary = {"metrics": {"test/seg/dice": dice, "test/seg/otsu_dice": otsu}, "report": "r.html", "bundle": "b"}
    monkeypatch.setattr(demo, "train", lambda: summary)
    monkeypatch.setattr(demo, "wait_until_ready", lambda *_: None)
    monkeypatch.setattr(demo, "ask", lambda port, image: f"curl http://127.0.0.1:{port}")
    monkeypatch.setattr(demo, "compare", lambda bundle, image: None)
    assert demo.main() == code
    printed = capsys.readouterr()
    assert f"held-out Dice   {dice:.3f}" in printed.out
    assert ("The demo failed" in printed.err) == bool(code)


def test_free_ports_are_different():
    assert len(set(demo.free_ports(5))) == 5
