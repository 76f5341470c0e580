"""What a user sees of a local run: which step starts, what it says, how long it took, and why it failed.

KFP's local runner prints everything to stdout: its own log, the step's inputs as JSON, the step's output indented,
tracebacks. All of it goes to the run's log file; the terminal gets the story.
"""

import io
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

_COLOR = re.compile(r"\x1b\[\d+m")
_RUNNER_LOG = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - (?P<level>[A-Z]+) - (?P<message>.*)")
_STARTED = re.compile(r"Executing task '(?P<step>.+)'")
_ENDED = re.compile(r"Task '(?P<step>.+)' finished with status (?P<status>SUCCESS|FAILURE)")
_STEP_LOG = re.compile(r"(?P<indent> *)\[KFP Executor [^]]*\]: (?P<message>.*)")
_EXECUTOR_NOISE = ("Looking for component", "Loading KFP component", "Got executor_input", "Wrote executor output")
_OUTPUTS = re.compile(r"\s*(?:-{80}|\w+: \w+\( name='.*|uri='.*|metadata=\{.*\)?)")  # of a step that has ended
_ERROR = re.compile(r"(?P<name>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?:: (?P<message>.*))?$")
_IMPORTER = "importer"  # runs nothing: it notes an address
_INDENT = "    "  # before each line of a step


@dataclass
class StepFailure:
    """A step that failed: its name, its exception's class with module ("" if it was killed) and its message."""

    step: str
    error: str
    message: str


@dataclass
class Story(io.TextIOBase):
    """Stands in for stdout while KFP's local runner works.

    Attributes:
        terminal: Where the story is told.
        log: Where every line goes.
        num_steps: Of the pipeline, for "2 of 4"; None where a loop decides.
        failed: Is told of the first step that fails, before another one starts.
        seconds: How long each finished step took; the second of a name is "<name>-2", and so on.
        failure: The step that failed, if one did.
    """

    terminal: TextIO
    log: TextIO
    num_steps: int | None
    failed: Callable[[StepFailure], None] = lambda _: None
    seconds: dict[str, float] = field(default_factory=dict)
    failure: StepFailure | None = None
    _running: list[tuple[str, float]] = field(default_factory=list)  # a loop's steps run at once: name, start
    _turn: threading.Lock = field(default_factory=threading.Lock)  # the runner has a thread for each of them
    _unfinished: str = ""
    _indent: str = _INDENT  # of the runner, deeper in loops
    _in_inputs: bool = False
    _open_braces: int = 0  # of the inputs
    _traceback: list[str] = field(default_factory=list)
    _last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=3))

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._turn:
            *lines, self._unfinished = (self._unfinished + text).split("\n")
            for line in lines:
                clean = _COLOR.sub("", line)
                self.log.write(clean + "\n")
                self._hear(clean)
            self.log.flush()
            self.terminal.flush()
        return len(text)

    def _hear(self, line: str) -> None:
        # The runner's threads write a line and its end one after the other: one's record may follow another's line.
        if record := _RUNNER_LOG.search(line):
            self._hear(line[: record.start()])
            self._hear_runner(record["level"], record["message"])
        elif self._running and line.strip() and not _OUTPUTS.fullmatch(line):
            if record := _STEP_LOG.fullmatch(line):
                self._indent = record["indent"]
            self._hear_step(line.removeprefix(self._indent))

    def _hear_runner(self, level: str, message: str) -> None:
        if (started := _STARTED.fullmatch(message)) and started["step"] != _IMPORTER:
            self._running.append((started["step"], time.monotonic()))
            self._last_lines.clear()
            number, total = len(self.seconds) + len(self._running), self.num_steps
            self._tell(f"[{number}{f' of {total}' if total else ''}] {started['step']}")
        elif (ended := _ENDED.fullmatch(message)) and ended["step"] != _IMPORTER:
            self._end(ended["step"], succeeded=ended["status"] == "SUCCESS")
        elif level in ("WARNING", "ERROR"):
            self._tell(message)

    def _hear_step(self, line: str) -> None:
        if record := _STEP_LOG.fullmatch(line):
            message = record["message"]
            if len(self._running) == 1:  # else the line may be of another step than the traceback
                self._tell_traceback()
                self._in_inputs, self._open_braces = False, 0
            if not message.startswith(_EXECUTOR_NOISE):
                self._tell_step(message)
            elif message.startswith("Got executor_input"):
                self._in_inputs = True
        elif self._in_inputs:
            self._open_braces += line.count("{") - line.count("}")
            self._in_inputs = self._open_braces > 0
        elif self._traceback or line.startswith("Traceback (most recent call last)"):
            self._traceback.append(line)  # shown when it is known whether it is the step's end
        else:
            self._tell_step(line)

    def _end(self, step: str, *, succeeded: bool) -> None:
        # of several with one name the one that started first: the runner does not say which
        position = [name for name, _ in self._running].index(step)
        _, start = self._running.pop(position)
        number = 1 + sum(re.fullmatch(rf"{re.escape(step)}(-\d+)?", name) is not None for name in self.seconds)
        seconds = self.seconds[step if number == 1 else f"{step}-{number}"] = time.monotonic() - start
        if succeeded:
            if not self._running:
                self._tell_traceback()
            self._tell(f"{_INDENT}done in {seconds:.1f} s")
        else:
            failure = self._explain(step)
            if self.failure is None:  # the first: an exit handler runs after it, and may fail too
                self.failure = failure
                self.failed(failure)
            if not failure.error.startswith("cyto_dl.errors."):
                self._tell_traceback()
            self._tell(f"{_INDENT}failed after {seconds:.1f} s")
            self._traceback.clear()

    def _explain(self, step: str) -> StepFailure:
        """The exception that ended a step, read off the end of its traceback; its message may have several lines."""
        for index in range(len(self._traceback) - 1, -1, -1):
            if error := _ERROR.fullmatch(self._traceback[index]):
                message = "\n".join([error["message"] or "", *self._traceback[index + 1 :]])
                return StepFailure(step, error["name"], message)
        lines = "\n".join(self._last_lines) or "-"
        return StepFailure(step, "", f"the process ended without an error; its last lines:\n{lines}")

    def _tell_traceback(self) -> None:
        for line in self._traceback:
            self._tell_step(line)
        self._traceback.clear()

    def _tell_step(self, line: str) -> None:
        self._last_lines.append(line)
        self._tell(f"{_INDENT}{line}")

    def _tell(self, line: str) -> None:
        self.terminal.write(line + "\n")
