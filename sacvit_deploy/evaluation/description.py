"""A bundle in words, a line for each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sacvit_deploy.bundle import Bundle, GraphEntry, Manifest
    from sacvit_deploy.manifest import EngineEntry

_KIB, _MIB = 1 << 10, 1 << 20


def describe_bundle(bundle: Bundle) -> Iterator[str]:
    """Network, graphs, engines, files, and how far from torch the graphs are.

    Yields:
        Lines for a person; the names on the left line up.
    """
    manifest = bundle.manifest
    yield f"bundle   {bundle.path} (every file is as it was written)"
    yield from _network(manifest)
    for graph in manifest.graphs:
        yield from _graph(graph)
    for engine in manifest.engines:
        yield _engine(engine)
    for name, record in manifest.files.items():
        yield f"file     {name}  {_size(record.bytes)}  sha256 {record.sha256[:12]}"
    yield f"parity   {_worst_parity(manifest)}"
    yield f"made by  {', '.join(f'{tool} {version}' for tool, version in manifest.tools.items())}"


def _network(manifest: Manifest) -> Iterator[str]:
    config = manifest.config
    height, width = config.image_size
    yield (
        f"network  {config.family}: {height}x{width} px, patch {config.patch_size}, width "
        f"{config.embed_dim}, depth {config.depth}, heads {config.num_heads}, "
        f"{config.num_classes} classes"
    )
    if config.two_stage:
        yield (
            f"stages   {config.num_targets} of {config.num_coarse_tokens} tokens are looked at "
            f"again; exit when {config.two_stage.exit_comparison} {manifest.eta:g}; "
            f"{config.two_stage.attention} attention; selection by {manifest.selection}"
        )
    origin = ", ".join(f"{key} {value}" for key, value in manifest.weights.items())
    yield f"weights  {origin}"


def _graph(graph: GraphEntry) -> Iterator[str]:
    yield f"graph    {graph.file}  {graph.role}  {graph.precision}"
    for sign, tensors in (("<-", graph.inputs), ("->", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape))
            yield f"           {sign} {tensor.name}  {tensor.dtype} ({shape})"


def _engine(engine: EngineEntry) -> str:
    batch = ":".join(map(str, engine.batch))
    return (
        f"engine   {engine.file}  {engine.role}  {engine.precision}  {engine.runtime} "
        f"{engine.runtime_version}, compute capability {', '.join(engine.compute_capabilities)}, "
        f"batch {batch}"
    )


def _worst_parity(manifest: Manifest) -> str:
    if not manifest.parity:
        return "not measured"
    worst = max(manifest.parity, key=lambda record: float(record["relative_error"]))
    return (
        f"worst {worst['tensor']} of {worst['role']}: {worst['max_abs_error']:.2g} "
        f"({worst['relative_error']:.2g} of its largest value) at batch {worst['batch']}"
    )


def _size(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / _KIB:.0f} KiB"
