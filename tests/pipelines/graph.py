"""Read a compiled pipeline: its tasks, references that lead nowhere, and its lines without what differs by choice."""

import re
from pathlib import Path
from typing import Any


def normalized(path: Path) -> list[str]:
    """Lines of a package without what differs by choice: the image, and the SDK's patch version."""
    text = re.sub(r"^( *image:).*$", r"\1 IMAGE", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"^(sdkVersion:).*$", r"\1 VERSION", text, flags=re.MULTILINE).splitlines()


def all_tasks(specification: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every task by its name: steps, conditions and their branches, loops."""
    nodes = [specification["root"], *specification["components"].values()]
    return [item for node in nodes if "dag" in node for item in node["dag"]["tasks"].items()]


def steps(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that run a container, by the names of their components."""
    named = {task["componentRef"]["name"]: task for _, task in all_tasks(specification)}
    runs = {
        name
        for name, component in specification["components"].items()
        if "container" in specification["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
    }
    return {name.removeprefix("comp-"): task for name, task in named.items() if name in runs}


def dangling(specification: dict[str, Any]) -> list[str]:
    """References to components, executors and tasks that do not exist, and components and executors without use.

    KFP's own loader accepts them all.
    """
    components_, executors = specification["components"], specification["deploymentSpec"]["executors"]
    problems, used, labels = [], set(), set()
    for name, node in [("root", specification["root"]), *components_.items()]:
        if "executorLabel" in node:
            labels.add(node["executorLabel"])
        tasks = node.get("dag", {}).get("tasks", {})
        for key, task in tasks.items():
            used.add(task["componentRef"]["name"])
            before = set(task.get("dependentTasks", []))
            sources = task.get("inputs", {})
            for source in [*sources.get("parameters", {}).values(), *sources.get("artifacts", {}).values()]:
                producer = source.get("taskOutputArtifact", source.get("taskOutputParameter"))
                before |= {producer["producerTask"]} if producer else set()
            problems += [f"{name}.{key}: no task {missing}" for missing in before - set(tasks)]
    problems += [f"no component {missing}" for missing in used - set(components_)]
    problems += [f"no executor {missing}" for missing in labels - set(executors)]
    problems += [f"component {unused} is not used" for unused in set(components_) - used]
    problems += [f"executor {unused} is not used" for unused in set(executors) - labels]
    return problems


def containers(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The containers of the executors by name; an importer has none."""
    executors = specification["deploymentSpec"]["executors"]
    return {name: executor["container"] for name, executor in executors.items() if "container" in executor}
