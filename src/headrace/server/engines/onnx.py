"""ONNX models, by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Timer

import onnxruntime as ort

from headrace.core.errors import InvalidInput, Unprocessable
from headrace.core.schema import Signature, TensorSpec
from headrace.core.specs import EngineOptions
from headrace.registry.importers.onnx import MODEL_IN_TAR, check_locations
from headrace.server.engines.artifact import head, kind_of
from headrace.server.engines.onnx_form import GRAPH, Form
from headrace.server.engines.port import Array, example
from headrace.server.engines.python import extract
from headrace.server.engines.tensors import select, settle, to_bytes, to_text

DATATYPE_OF = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_NO_ZIPMAP = "convert a classifier with options={'zipmap': False}, so that its probabilities are a tensor"
_ONE_FILE = "import it, which makes one file of it: headrace models import model.onnx"


PACK_AFTER_S = 0.5
"""How long a replica that began without prepacking first answers what has waited for it."""
SMALLEST = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""A model that gives what it takes, one number."""


class OnnxEngine:
    """An ONNX (or ORT-format) model on the CPU."""

    signature: Signature

    def __init__(
        self,
        path: Path,
        options: EngineOptions,
        signature: Signature | None,
        threads: int,
        form: Form | None = None,
        frugal: bool = False,
    ) -> None:
        self._packing: Timer | None = None
        quick = form is not None and form.quick
        if form is not None:
            session = open_form(form, threads, prepack=not quick)
        else:
            session = open_artifact(path, threads, frugal_settings(threads) if frugal else None)
        self._inputs = tuple(node.name for node in session.get_inputs())
        self._text_in: tuple[int, ...] = ()
        own = _measured(session, Signature(_inputs(session), _outputs(session, options.outputs)))
        self.signature = settle(own, signature, options.outputs)
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._text_in = tuple(k for k, spec in enumerate(own.inputs) if spec.datatype == "BYTES")
        self._text_out = tuple(k for k, spec in enumerate(self.signature.outputs) if spec.datatype == "BYTES")
        # What `session.run` calls after checks that the signature makes needless: 1 us of 7 for a small model.
        self._run = getattr(session, "_sess", session).run
        self._session = session
        if form is not None and quick and form.prepack:
            self._packing = Timer(PACK_AFTER_S, self._pack, (form, threads))
            self._packing.daemon = True
            self._packing.start()

    def _pack(self, form: Form, threads: int) -> None:
        """Open the session that the requests to come are run in: slower to open, quicker to run."""
        session = open_form(form, threads, prepack=True)
        self._run = getattr(session, "_sess", session).run
        self._session = session

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Engine.run`."""
        if self._text_in:
            inputs = list(inputs)
            for k in self._text_in:
                inputs[k] = to_text(inputs[k], self._inputs[k])
        outputs: list[Array] = self._run(self._outputs, dict(zip(self._inputs, inputs, strict=True)), None)
        for k in self._text_out:
            outputs[k] = to_bytes(outputs[k])
        return outputs

    def close(self) -> None:
        """See `Engine.close`."""
        if self._packing is not None:
            self._packing.cancel()
            self._packing.join()
        del self._run, self._session


def open_smallest() -> None:
    """Open a session and close it: what the library sets up with its first one is then there. It starts no thread."""
    ort.InferenceSession(SMALLEST, settings_for(1), providers=["CPUExecutionProvider"])


def settings_for(threads: int, prepack: bool = True) -> ort.SessionOptions:
    """A session's settings. `prepack`: copy weights into the order in which the kernels read them."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    if not prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    return settings


def frugal_settings(threads: int) -> ort.SessionOptions:
    """A session's settings beside a thousand others: an arena keeps what one large batch once took, prepacking a second
    copy of the weights. 140 -> 99 KB for a model of 8 KB, 527 -> 349 KB for one of 264 KB (`bench.pack` measures)."""
    settings = settings_for(threads, prepack=False)
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
    return settings


def open_artifact(path: Path, threads: int, settings: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session of an artifact: a model, or the tar of one with its weights. Raises Unprocessable."""
    settings = settings_for(threads) if settings is None else settings
    if head(path)[4:8] == b"ORTM":  # it goes by the extension otherwise, and artifacts have none
        settings.add_session_config_entry("session.load_model_format", "ORT")
    return _open_tar(path, settings) if kind_of(path) == "tar" else _open(path, settings)


def open_form(form: Form, threads: int, prepack: bool) -> ort.InferenceSession:
    """A session of a serving form; its weights are mapped, and shared by all processes that map them."""
    graph = str(form.folder / GRAPH)
    return ort.InferenceSession(graph, settings_for(threads, prepack), providers=["CPUExecutionProvider"])


def _open(path: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    """A session of this file and no other.

    A model may keep weights in other files of its folder. In the artifact store these are other people's models, so it
    is shown an empty folder in its place.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-none-") as nothing:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        try:
            return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base of their own
            if "external data" not in str(error).lower():
                raise
    raise Unprocessable("the model keeps weights in another file", field="digest", hint=_ONE_FILE)


def _open_tar(path: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    """A session of a model that is too large for one file: unpacked, with its weights, into a folder of its own.

    The library maps the weights, so they stay when the folder is removed.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-model-") as name:
        model = extract(path, Path(name)) / MODEL_IN_TAR
        if not model.is_file():
            raise Unprocessable(f"the tar holds no {MODEL_IN_TAR}", field="digest")
        try:
            check_locations(model)
        except Unprocessable as error:
            raise Unprocessable(error.message, field="digest") from None
        return ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])


def _spec(node: ort.NodeArg) -> TensorSpec:
    """A node's spec; dimensions with a symbol or without a value are free."""
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape)
    return TensorSpec(node.name, DATATYPE_OF[node.type], shape)


def _inputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    for node in session.get_inputs():
        if node.type not in DATATYPE_OF:
            raise Unprocessable(f"input {node.name!r} is {node.type}, which cannot be sent", field="digest")
    return tuple(map(_spec, session.get_inputs()))


def _outputs(session: ort.InferenceSession, wanted: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The outputs that are tensors. A converter's ZipMap makes a sequence of maps, which has no place in a tensor."""
    others = {node.name: node.type for node in session.get_outputs() if node.type not in DATATYPE_OF}
    tensors = tuple(_spec(node) for node in session.get_outputs() if node.name not in others)
    for name in wanted:
        if name in others:
            raise InvalidInput(
                f"options.outputs: output {name!r} is {others[name]}, no tensor",
                field="options.outputs",
                hint=_NO_ZIPMAP,
            )
    if not tensors:
        raise Unprocessable(f"no output is a tensor: {others}", field="digest", hint=_NO_ZIPMAP)
    return select(tensors, wanted)


def _measured(session: ort.InferenceSession, declared: Signature) -> Signature:
    """The signature with outputs of the rank they have: converters write outputs without their shape."""
    if all(spec.shape for spec in declared.outputs):
        return declared
    feed = {
        spec.name: to_text(array, spec.name) if spec.datatype == "BYTES" else array
        for spec, array in zip(declared.inputs, example(declared), strict=True)
    }
    arrays = session.run([spec.name for spec in declared.outputs], feed)
    outputs = tuple(
        spec if spec.shape else TensorSpec(spec.name, spec.datatype, (-1,) * array.ndim)
        for spec, array in zip(declared.outputs, arrays, strict=True)
    )
    return Signature(declared.inputs, outputs)
