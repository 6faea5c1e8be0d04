"""One networkx node and edge for each page: what a model without memory objects comes to.

Pages are read one at a time, and each mapped page is a node with attributes, held in a graph with
the process, its mappings, and an edge for each that maps it. The paper's tool works at this
granularity; this is our own code, and shares none with it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import networkx as nx


def capture(pids: Iterable[int], skip: Iterable[int]) -> nx.MultiDiGraph:
    """The graph; *skip* (the zero page), vvar and vdso left out."""
    graph = nx.MultiDiGraph()
    graph.add_node("MEMORY", kind="SPACE")
    left_out = set(skip)
    for pid in pids:
        process = f"PD_{pid}"
        graph.add_node(process, kind="PD", pid=pid)
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
            for number, line in enumerate(maps):
                fields = line.split()
                start, end = (int(x, 16) for x in fields[0].split("-"))
                if fields[-1] in ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"):
                    continue
                region = f"VMR_{pid}_{number}"
                path = fields[5] if len(fields) > 5 else ""
                graph.add_node(region, kind="VMR", start=start, end=end, path=path)
                graph.add_edge(process, region, kind="HOLD", permissions=fields[1])
                for page in range(start // 4096, end // 4096):
                    pagemap.seek(page * 8)
                    (entry,) = struct.unpack("=Q", pagemap.read(8))
                    frame = entry & ((1 << 55) - 1)
                    if entry >> 63 and frame not in left_out:
                        node = f"MO_{frame}"
                        if node not in graph:
                            graph.add_node(node, kind="MO", frame=frame)
                            graph.add_edge(node, "MEMORY", kind="SUBSET")
                        graph.add_edge(region, node, kind="MAP", permissions=fields[1])
    return graph


def shared_pages(graph: nx.MultiDiGraph) -> Counter[tuple[int, int]]:
    """Pages that each pair (lower pid first) has in common; a pair of equals is its own pages."""
    pairs: Counter[tuple[int, int]] = Counter()
    for node, kind in graph.nodes(data="kind"):
        if kind == "MO":
            regions = {r for r, _, edge in graph.in_edges(node, data="kind") if edge == "MAP"}
            pids = sorted({int(region.split("_")[1]) for region in regions})
            pairs.update((pid, pid) for pid in pids)
            pairs.update(combinations(pids, 2))
    return pairs
