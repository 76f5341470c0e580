"""Batch prediction, step 2: the images of one shard are predicted."""

from kfp.dsl import Dataset, Input, Output

from components.image import component


@component
def predict(
    plan: Input[Dataset],
    shard: str,
    bundle: str,
    output: str,
    engine: str,
    table: Output[Dataset],
) -> None:
    """Predict the images of one shard that are not done yet; a bad image is a failed row with its reason.

    Started again with the same output folder, it goes on where it stopped: an image is done if its predictions are
    there, whole, of the same file and by the same bundle.

    Args:
        plan: Folder from plan_shards.
        shard: Name of the shard's table in it.
        bundle: Folder of the bundle, local or s3://.
        output: Receives <head>/<name>.ome.tif for each head of the model and each image, local or s3://.
        engine: torch, torch-mixed, onnxruntime, openvino, openvino-bf16, or auto.

    Returns:
        table: A row an image: path, status, seconds, the file of each head, error, whether it was kept.
    """
    from cyto_dl.steps import predict_step

    predict_step(plan.path, shard, bundle, output, engine=engine, table_path=table.path)
