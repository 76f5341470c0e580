"""Remove simulated noise from nuclei with pairs and with noisy images alone:

    python benchmarks/accuracy/denoise_nuclei.py examples/nuclei

clean images --photons, read noise--> noisy images -> a Gaussian filter, im2im/denoise, im2im/denoise_blind_spot -> PSNR

The filter's sigma is the one that is best on the training images, with their clean images. The networks' settings were
chosen on the validation images; the test images are looked at once, here.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy.hardware import trainer_overrides
from benchmarks.results import write_result
from cyto_dl.bundle import predictor_from_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.data.image import read_image, write_image
from cyto_dl.evaluation import evaluate
from cyto_dl.evaluation.scores import bootstrap_interval
from cyto_dl.metrics import PSNR
from cyto_dl.train import train

RESULT = Path(__file__).parent / "results" / "denoise_nuclei.json"
PHOTONS = 0.5  # per grey value
READ_NOISE = 4.0  # standard deviation, grey values
SIGMAS_PX = (0.5, 0.75, 1, 1.25, 1.5, 2, 3)
EXPERIMENTS = {"pairs": "im2im/denoise", "blind_spot": "im2im/denoise_blind_spot"}
EPOCHS = {"pairs": 60, "blind_spot": 150}  # of 22 steps: a quarter of the pixels that the shipped patches have
TARGETS_DB = {"pairs": 2.0, "blind_spot": 0.0}  # above the filter

Images = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # split -> (noisy, clean), each Y X


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both, measure them and the filter, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of manifest.csv with the columns raw and split")
    parser.add_argument("--runs", type=Path, default=Path("logs/benchmarks/denoise_nuclei"), help="where the runs go")
    parser.add_argument("--epochs", type=int, help="of both; default: pairs 60, blind spot 150")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    manifest, images = add_noise(chosen.data / "manifest.csv", chosen.runs / "images")
    sigma = max(SIGMAS_PX, key=lambda each: filtered_psnr(images["train"], each).mean())
    filtered = filtered_psnr(images["test"], sigma)
    result: dict[str, Any] = {
        "benchmark": "denoise_nuclei",
        "target": f"mean PSNR in dB above a Gaussian filter: {TARGETS_DB}",
        "intervals": f"95 %, by bootstrap over {len(filtered)} test images",
        "noise": {"photons_per_grey_value": PHOTONS, "read_noise": READ_NOISE, "seed": 0},
        "noisy": _figures(filtered_psnr(images["test"], 0)),
        "gaussian_filter": {"sigma_px": sigma, **_figures(filtered)},
    }
    for name in EXPERIMENTS:
        epochs = chosen.epochs or EPOCHS[name]
        result[name] = network_figures(name, manifest, chosen.runs / name, epochs=epochs, baseline=filtered)
        print(f"{name}: {result[name]['psnr']:.2f} dB, {result[name]['gain']:+.2f} above sigma {sigma}")
    write_result(chosen.result, result)


def add_noise(manifest: Path, folder: Path) -> tuple[Path, Images]:
    """The images with photon and read noise, as files beside the clean ones, and the table of both."""
    rng = np.random.default_rng(0)
    rows, images = [], Images()
    for index, row in pd.read_csv(manifest).iterrows():
        clean = read_image(manifest.parent / row["raw"], spatial_dims=2).array[0].astype(np.float32)
        noisy = rng.poisson(clean * PHOTONS) / PHOTONS + rng.normal(0, READ_NOISE, clean.shape)
        pair = {"noisy": noisy.astype(np.float32), "clean": clean}
        for name, image in pair.items():
            write_image(folder / f"{name}_{index}.ome.tif", image[None])
        rows.append({name: f"{name}_{index}.ome.tif" for name in pair} | {"split": row["split"]})
        images.setdefault(row["split"], []).append((pair["noisy"], clean))
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv", images


def filtered_psnr(images: list[tuple[np.ndarray, np.ndarray]], sigma: float) -> np.ndarray:
    """PSNR of each image in dB after a Gaussian filter; sigma 0 is none."""
    filtered = [(gaussian_filter(noisy, sigma) if sigma else noisy, clean) for noisy, clean in images]
    pairs = [tuple(torch.from_numpy(image)[None, None] for image in pair) for pair in filtered]
    return np.array([PSNR().per_image(*pair).item() for pair in pairs])


def network_figures(name: str, manifest: Path, run: Path, *, epochs: int, baseline: np.ndarray) -> dict[str, Any]:
    """Train one experiment; PSNR of its best checkpoint on the test images, and its gain over the baseline."""
    config = experiment(EXPERIMENTS[name], manifest, run, epochs)
    start, cpu_start = time.perf_counter(), time.process_time()
    train(config)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    predictor, _, _ = predictor_from_checkpoint(run, config=config)
    images = evaluate(predictor, config, manifest=manifest, split="test").images
    psnr = images["clean/psnr"].to_numpy()
    return {
        **_figures(psnr),
        "gain": float((psnr - baseline).mean()),
        "gain_interval": bootstrap_interval(psnr - baseline),
        "num_better": int((psnr > baseline).sum()),
        "psnr_affine": float(images["clean/psnr_affine"].mean()),
        "ssim": float(images["clean/ssim"].mean()),
        "epochs": epochs,
        "training_wall_s": round(wall_s),
        "training_cpu_s": round(cpu_s),
    }


def experiment(name: str, manifest: Path, output_dir: Path, epochs: int) -> dict[str, Any]:
    """The shipped experiment for these images, on small patches: many steps in a short time."""
    config: Mapping[str, Any] = compose_experiment(
        [
            f"experiment={name}",
            *trainer_overrides(),
            "source_col=noisy",
            "target_col=clean",
            "spatial_dims=2",
            "intensity_offset=0",
            "intensity_scale=50",
            f"data.path='{manifest}'",
            "data.patch_shape=[64,64]",
            f"trainer.max_epochs={epochs}",
            "trainer.check_val_every_n_epoch=5",
            "callbacks.previews=null",
            "callbacks.progress_bar=null",
            "extras.print_config=false",
            "test=false",
        ],
        output_dir=output_dir,
    )
    return dict(config)


def _figures(psnr: np.ndarray) -> dict[str, Any]:
    return {"psnr": float(psnr.mean()), "psnr_interval": bootstrap_interval(psnr)}


if __name__ == "__main__":
    torch.set_num_threads(1)  # figures that can be compared from one machine to the next
    main()
