"""A packed network as a C99 header for microcontrollers: bits, scales and biases as tables, the graph as a comment.

The header's own comment states the layout; `sparsign_weight` in it decodes one weight, as a definition and for tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from sparsign.export import Content, Options, facts
from sparsign.packing.spec import Node, PackedModel

TYPES = {"uint8": "uint8_t", "int8": "int8_t", "int64": "int32_t", "float32": "float"}
WIDTH = 110
HEAD = """\
/* A network packed by sparsign. Input: float [{input}], normalised. C99, no dependencies.
 *
{facts} *
 * Weights are cut, of shape [rows, cols, kh, kw] or [rows, cols], and lie in C order. Layers have
 *   binary and ternary: `negative`, a bit per weight, 1 where it is negative, and, unless none is 0, `nonzero`, 1 where
 *     it is not 0. Every row starts on a byte, its first weight in the lowest bit; spare bits are 0. A positive weight
 *     is positive_scale[row], a negative one -negative_scale[row]; one scale holds for all rows where scales == 1.
 *   more levels: `codes`, int8; a weight is its code times the scale of its sign.
 *   other: `floats`, the weights themselves.
 *
 * Nodes in order, as  output = operation(inputs) attributes -> shape; affine is scale[c] * x + shift[c], sign makes +1
 * of 0, all else is what PyTorch calls so. Their arrays are n_<node>_<name>.
{nodes}
 */
#ifndef SPARSIGN_NET_H
#define SPARSIGN_NET_H

#include <stddef.h>
#include <stdint.h>

typedef struct {{
    const char *name;
    int32_t shape[4]; /* 1 where there is no such axis */
    const uint8_t *negative, *nonzero;
    const int8_t *codes;
    const float *floats;
    const float *positive_scale, *negative_scale;
    int32_t scales;
}} sparsign_layer;

/* Weight number `column` (of cols * kh * kw) in `row`. */
static inline float sparsign_weight(const sparsign_layer *l, size_t row, size_t column) {{
    const size_t n = (size_t)l->shape[1] * l->shape[2] * l->shape[3], at = row * n + column;
    if (l->floats) return l->floats[at];
    const size_t byte = row * ((n + 7) / 8) + column / 8, scale = l->scales == 1 ? 0 : row;
    int code = l->codes ? l->codes[at] : l->negative[byte] >> (column % 8) & 1 ? -1 : 1;
    if (l->nonzero && !(l->nonzero[byte] >> (column % 8) & 1)) code = 0;
    return (code > 0 ? l->positive_scale : l->negative_scale)[scale] * (float)code;
}}
"""


def content(packed: PackedModel, options: Options) -> Content:
    """See `export.convert`."""
    shapes = packed.shapes
    nodes = "\n".join(f" *   {_comment(_described(node))} -> {list(shapes[node.name])}" for node in packed.nodes)
    said = "".join(f" * {part}: {_comment(text)}\n" for part, text in facts(packed).items())
    text = [HEAD.format(input=", ".join(map(str, packed.input_shape)), facts=said, nodes=nodes)]
    layers, size = [], 0
    for node, name in zip(packed.nodes, _identifiers(node.name for node in packed.nodes), strict=True):
        arrays = dict(node.tensors)
        if node.codes is not None:
            arrays |= (weight := _weight(node))
            layers.append(_layer(node, name, weight))
        text += [_table(f"{name}_{key}", array) for key, array in arrays.items()]
        size += sum(np.asarray(a).size * (4 if a.dtype == np.int64 else a.itemsize) for a in arrays.values())
    text.append("static const sparsign_layer sparsign_layers[] = {\n" + "".join(layers) + "};")
    text.append("#endif\n")
    return Content("\n".join(text).encode("ascii"), f"{size:,} bytes once compiled; not run here")


def _weight(node: Node) -> dict[str, np.ndarray]:
    """The tables of a layer, by field of sparsign_layer."""
    codes, rows = node.codes, len(node.codes.rows)
    signed = codes.values.signed_scales(rows)
    dense = codes.dense_codes() if codes.coded else None
    if signed is None or dense.dtype != np.int8:
        return {"floats": codes.weight()}
    if all((s == s[0]).all() for s in signed):
        signed = tuple(s[:1] for s in signed)
    scales = {"positive_scale": signed[0]} | ({} if np.array_equal(*signed) else {"negative_scale": signed[1]})
    if abs(dense.astype(np.int16)).max(initial=0) > 1:
        return {"codes": dense, **scales}
    flat = dense.reshape(rows, -1)
    planes = {"negative": flat < 0} | ({} if flat.all() else {"nonzero": flat != 0})
    return {key: np.packbits(plane, axis=1, bitorder="little") for key, plane in planes.items()} | scales


def _layer(node: Node, name: str, weight: dict[str, np.ndarray]) -> str:
    fields = {key: f"{name}_{key}" for key in weight}
    if "positive_scale" in fields:
        fields = {"negative_scale": fields["positive_scale"], **fields, "scales": len(weight["positive_scale"])}
    shape = ", ".join(map(str, (*node.codes.shape, 1, 1)[:4]))
    quoted = re.sub(r'["\\?]', "_", _comment(node.name))
    fields = {"name": f'"{quoted}"', "shape": f"{{{shape}}}", **fields}
    return "    {" + ", ".join(f".{key} = {value}" for key, value in fields.items()) + "},\n"


def _table(name: str, array: np.ndarray) -> str:
    kind = TYPES[array.dtype.name]
    words = [f"{v:.9g}" for v in array.ravel()] if kind == "float" else [str(v) for v in array.ravel().tolist()]
    if kind == "float":  # nine digits give the same number back
        words = [w + ("f" if "." in w or "e" in w else ".0f") for w in words]
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = ""
        line += f"{word},"
    return f"static const {kind} {name}[{max(1, array.size)}] = {{\n" + "\n".join([*lines, line or "0"]) + "\n};\n"


def _described(node: Node) -> str:
    attributes = ", ".join(f"{key}={value}" for key, value in node.attrs.items())
    return f"{node.name} = {node.op}({', '.join(node.inputs)}) {attributes}".rstrip()


def _comment(text: str) -> str:
    """Printable ASCII that neither ends nor begins a comment."""
    return re.sub(r"[^ -~]|\*/|/\*", "_", text)


def _identifiers(names: Iterable[str]) -> Iterator[str]:
    """A C identifier for each name, no two the same."""
    taken: set[str] = set()
    for name in names:
        found = "n_" + re.sub(r"\W", "_", name, flags=re.ASCII)
        while found in taken:
            found += "_"
        taken.add(found)
        yield found
