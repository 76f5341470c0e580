"""A file whose bytes somebody sent is read as the file on the disk is, and never beyond what its header promises."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from cyto_dl.data.formats import FileInMemory, TooManyValuesError
from cyto_dl.data.image import read_image, write_image
from cyto_dl.errors import ImageError

LIMIT = 10**6
PLANE = np.arange(30, dtype=np.uint16).reshape(5, 6)
STACK = np.arange(120, dtype=np.uint16).reshape(4, 5, 6)


def in_memory(content, *, max_values=LIMIT):
    return FileInMemory(content, "the body", max_values=max_values)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def picture(array, kind="png"):
    file = io.BytesIO()
    Picture.fromarray(array).save(file, kind)
    return file.getvalue()


def ome(array, spacing_um):
    file = io.BytesIO()
    write_image(file, array, spacing_um=spacing_um)
    return file.getvalue()


RGB = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
FILES = {
    "plain.tif": (tiff(PLANE), 2),
    "imagej.tif": (
        tiff(STACK, imagej=True, resolution=(5, 5), metadata={"axes": "ZYX", "unit": "um", "spacing": 0.5}),
        3,
    ),
    "plane.ome.tif": (ome(PLANE[None], (0.2, 0.1)), 2),
    "stack.ome.tif": (ome(STACK[None], (0.5, 0.2, 0.1)), 3),
    "channels.ome.tif": (ome(np.stack([PLANE, PLANE + 1]), (0.2, 0.1)), 2),
    "big.tif": (tiff(PLANE, bigtiff=True, compression="lzw"), 2),
    "grey.png": (picture(PLANE), 2),
    "colours.png": (picture(RGB), 2),
    "colours.jpg": (picture(RGB, "jpeg"), 2),
}


@pytest.mark.parametrize(("name", "content", "dims"), [(name, *each) for name, each in FILES.items()], ids=FILES)
def test_it_has_the_pixels_channels_and_spacing_of_the_file_on_the_disk(tmp_path, name, content, dims):
    (tmp_path / name).write_bytes(content)
    wanted = read_image(tmp_path / name, spatial_dims=dims)
    got = read_image(in_memory(content), spatial_dims=dims)
    assert got.array.dtype == wanted.array.dtype
    np.testing.assert_array_equal(got.array, wanted.array)
    assert (got.spacing_um, got.path) == (wanted.spacing_um, "the body")


def test_a_channel_is_picked_as_of_the_file_on_the_disk():
    got = read_image(in_memory(FILES["channels.ome.tif"][0]), spatial_dims=2, channels=1)
    np.testing.assert_array_equal(got.array, PLANE[None] + 1)


def bomb_png(width, height):
    """A PNG that promises width x height pixels, and holds a few."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
              for kind, each in parts]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "content",
    [
        bomb_png(2000, 2000),
        bomb_png(60_000, 60_000),
        tiff(np.zeros((2000, 2000), np.uint8), compression="zlib"),
        tiff(np.zeros((5, 600, 600), np.uint8), compression="zlib", metadata={"axes": "TYX"}),
        tiff(np.zeros((16, 16), np.uint8), tile=(2048, 2048), compression="zlib"),
    ],
    ids=["png", "png beyond Pillow's own limit", "tiff", "time series", "tile larger than the image"],
)
def test_what_would_unfold_beyond_the_limit_is_refused_by_its_header(content):
    assert len(content) < 100_000
    with pytest.raises(TooManyValuesError, match=r"the body: .*(1000000 values|limit)"):
        read_image(in_memory(content), spatial_dims=2)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "webp", "png"])
def test_codecs_that_say_their_size_themselves_are_refused(codec):
    pixels = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ImageError, match="Deflate, LZW or Zstandard"):
        read_image(in_memory(tiff(pixels, compression=codec, photometric="rgb")), spatial_dims=2)


def test_other_files_that_it_names_are_not_read_and_not_made_up(tmp_path, monkeypatch):
    """An OME-TIFF in several files: the planes of the others would be zeros."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite(tmp_path / "secret.ome.tif", PLANE)
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="6" SizeY="5" SizeC="2" '
        'SizeZ="1" SizeT="1"><TiffData IFD="0" FirstC="0" PlaneCount="1"><UUID FileName="own.ome.tif">urn:uuid:1</UUID>'
        '</TiffData><TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName="secret.ome.tif">urn:uuid:2</UUID>'
        "</TiffData></Pixels></Image></OME>"
    )
    content = tiff(PLANE, description=description, metadata=None)
    with pytest.raises(ImageError, match=r"the body.*secret\.ome\.tif"):
        read_image(in_memory(content), spatial_dims=2)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(("tif", "png"))])
@pytest.mark.parametrize("cut", [0.2, 0.5])
def test_a_file_that_is_cut_off_is_refused_under_its_name_and_without_a_path(name, cut):
    content, dims = FILES[name]
    with pytest.raises(ImageError, match=r"^the body: [^/]*$"):
        read_image(in_memory(content[: int(cut * len(content))]), spatial_dims=dims)


def test_bytes_of_another_kind_have_no_reader():
    with pytest.raises(ImageError, match="no reader"):
        read_image(in_memory(b"GIF89a"), spatial_dims=2)


def test_a_damaged_png_is_refused_without_an_address_in_memory():
    file = io.BytesIO()
    Picture.fromarray(PLANE.astype(np.uint8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[20] ^= 1  # of the header, whose checksum is then wrong
    with pytest.raises(ImageError) as error:
        read_image(in_memory(bytes(content)), spatial_dims=2)
    assert "0x" not in str(error.value)
