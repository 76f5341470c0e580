"""Which function reads which file, by its suffix."""

from cyto_dl.data.formats import Reader, open_npy, open_picture, open_tiff
from cyto_dl.data.ome_zarr import open_zarr

READERS: dict[str, Reader] = {
    ".tif": open_tiff,
    ".tiff": open_tiff,
    ".png": open_picture,
    ".jpg": open_picture,
    ".jpeg": open_picture,
    ".npy": open_npy,
    ".zarr": open_zarr,
}
