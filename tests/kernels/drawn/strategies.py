"""Convolutions to draw; apart from their operands, which GPU tests use without hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from tensorlrf_kernels.geometry import Geometry

geometries = st.builds(
    Geometry,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
kernels = st.tuples(st.integers(1, 4), st.integers(1, 4)) | st.sampled_from([(7, 7), (1, 7)])
