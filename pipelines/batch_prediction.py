"""From a table of microscope images and a bundle to one image a head and row, and a table that says where they are.

plan_shards -> predict, one a shard -> collect
     |                 |                  |
   plan       <head>/<name>.ome.tif   predictions.csv
"""

from kfp import dsl

from components.collect import collect
from components.plan_shards import plan_shards
from components.predict import predict
from pipelines import resources

# Of the shards' pods, whatever num_shards is: each asks for a large node. KFP takes no parameter for it.
MAX_AT_ONCE = 16


@dsl.pipeline(
    name="cyto-dl-batch-prediction", display_name="CytoDL batch prediction", pipeline_config=resources.LIFETIME
)
def batch_prediction(
    manifest: str,
    bundle: str,
    output: str,
    column: str = "",
    num_shards: int = 4,
    engine: str = "torch",
) -> None:
    """Predict many images with a bundle, in parallel; started again, it does only what is not done.

    Args:
        manifest: A .csv or .parquet with one row per image, or a folder of them; local or s3://. All splits are
            predicted.
        bundle: Folder of the bundle, local or s3://.
        output: Folder for the predictions: <head>/<name>.ome.tif and predictions.csv. s3:// on a cluster, or a folder
            that every node sees. With that of an earlier run, images are left that are done.
        column: Column that holds the images; "" for the name of the bundle's input.
        num_shards: Into how many parts of about the same size in bytes the images are dealt; each is a pod.
        engine: What computes: torch, torch-mixed (on GPUs), onnxruntime, openvino (faster for 3-D networks),
            openvino-bf16, or auto.
    """
    planned = plan_shards(manifest=manifest, bundle=bundle, output=output, column=column, num_shards=num_shards)
    # The keys of KFP's cache are addresses, not what lies there: a cached step would miss a changed table.
    planned.set_display_name("Plan shards").set_caching_options(False)
    resources.try_again(resources.small(planned), times=2)

    with dsl.ParallelFor(planned.outputs["Output"], name="shards", parallelism=MAX_AT_ONCE) as shard:
        predicted = predict(plan=planned.outputs["plan"], shard=shard, bundle=bundle, output=output, engine=engine)
        predicted.set_display_name("Predict").set_caching_options(False)  # the output folder may have been emptied
        resources.try_again(resources.large(predicted), times=2)  # goes on where it stopped

    collected = collect(tables=dsl.Collected(predicted.outputs["table"]), output=output)
    resources.once(collected.set_display_name("Collect"))
