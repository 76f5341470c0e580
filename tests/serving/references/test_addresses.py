import pytest
from kserve.errors import InvalidInput

from cyto_dl.errors import ConfigError
from serving.errors import Closed
from serving.references.addresses import NOWHERE, Addresses, read_prefixes


@pytest.fixture
def plates(tmp_path):
    """A folder that may be read, beside one that may not."""
    (tmp_path / "plates").mkdir()
    (tmp_path / "plates2").mkdir()
    (tmp_path / "plates/leads-out").symlink_to(tmp_path / "plates2")
    return tmp_path / "plates"


def test_a_file_below_an_allowed_folder_may_be_read_by_path_and_by_url(plates):
    allowed = Addresses(readable=read_prefixes([str(plates)], option="--allow-read"))
    assert allowed.to_read(f"{plates}/day 1/a.tif") == f"{plates}/day 1/a.tif"
    assert allowed.to_read(f"file://{plates}/day%201/a.tif") == f"{plates}/day 1/a.tif"


@pytest.mark.parametrize("path", ["../plates2/a.tif", "leads-out/a.tif", "../plates2", "day/../../a.tif", ".."])
def test_neither_dots_nor_links_lead_out_of_an_allowed_folder(plates, path):
    allowed = Addresses(readable=read_prefixes([str(plates)], option="--allow-read"))
    for address in (f"{plates}/{path}", f"file://{plates}/{path}", f"file://{plates}/{path.replace('.', '%2e')}"):
        with pytest.raises(Closed) as refused:
            allowed.to_read(address)
        assert str(plates) not in str(refused.value.details)


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("s3://lab/plates", "s3://lab/plates2/a.tif"),
        ("s3://lab/plates/", "s3://lab/plates2/a.tif"),
        ("s3://lab", "s3://lab2/a.tif"),
        ("s3://lab/plates", "s3://other/plates/a.tif"),
        ("s3://lab/plates", "s3://lab/a.tif"),
        ("s3://lab/plates", "/lab/plates/a.tif"),
        ("/", "s3://lab/a.tif"),
    ],
)
def test_an_s3_prefix_allows_its_folder_and_no_other(prefix, address):
    with pytest.raises(Closed):
        Addresses(readable=read_prefixes([prefix], option="--allow-read")).to_read(address)


@pytest.mark.parametrize("prefix", ["s3://lab/plates", "s3://lab/plates/", "s3://lab"])
def test_an_s3_prefix_is_the_same_with_and_without_a_slash(prefix):
    allowed = Addresses(writable=read_prefixes([prefix], option="--allow-write"))
    assert allowed.to_write("s3://lab/plates/a/") == "s3://lab/plates/a"


@pytest.mark.parametrize(
    "address",
    [None, 3, "", "a.tif", "s3://", "s3://lab/plates/../a.tif", "s3://lab/plates//a.tif", "http://host/a.tif",
     "file://host/a.tif", "/data/\0", "/" + "a" * 3000, "/" + "a/" * 900 + "b" * 300],
)  # fmt: skip
def test_what_is_no_address_is_the_clients_fault(address):
    with pytest.raises((InvalidInput, Closed)):
        Addresses(readable=("s3://lab/plates", "/data")).to_read(address)


def test_nothing_may_be_read_or_written_by_default():
    with pytest.raises(Closed, match=r"image_uri.*not allowed"):
        NOWHERE.to_read("/etc/passwd")
    with pytest.raises(Closed, match=r"output_uri.*not allowed"):
        NOWHERE.to_write("s3://lab/plates")


def test_what_may_be_read_may_not_be_written(plates):
    with pytest.raises(Closed, match="output_uri"):
        Addresses(readable=(str(plates),)).to_write(str(plates))


def test_an_operators_prefix_that_is_no_address_is_refused_with_its_option():
    with pytest.raises(ConfigError, match="--allow-read"):
        read_prefixes(["plates"], option="--allow-read")
