"""RMSNorm on the device: the kernels, without their launches.

Shapes: M rows, N columns, P programs that each leave a row of partial sums of dw. Strides are those
of rows; None stands for N, as a constant of which the compiler knows the divisors.
"""

import triton
import triton.language as tl


@triton.jit
def _round(x, dtype: tl.constexpr):
    return x.to(dtype).to(tl.float32)


@triton.jit
def _square(x, dtype: tl.constexpr, CASTING: tl.constexpr):
    square = x * x
    if CASTING == "none":
        square = _round(square, dtype)
    return square


@triton.jit
def _reciprocal_rms(squares, eps, N, dtype: tl.constexpr, CASTING: tl.constexpr):
    mean = squares / N
    if CASTING == "none":
        mean = _round(mean, dtype)
        rstd = _round(tl.rsqrt(_round(mean + eps, dtype)), dtype)
    else:
        rstd = tl.rsqrt(mean + eps)
    return rstd


@triton.jit
def _scale(x, rstd, weight, dtype: tl.constexpr, CASTING: tl.constexpr):
    if CASTING == "fp32":
        y = x * rstd * weight
    elif CASTING == "gemma":
        y = x * rstd * (1.0 + weight)
    else:
        # The product of two 16-bit floats is exact in fp32, so this rounds once, as eager does.
        y = _round(x * rstd, dtype) * _round(weight, dtype)
    return y.to(dtype)


@triton.jit
def _load_weight(weight_ptr, column_N, mask_N, OFFSET: tl.constexpr, POLICY: tl.constexpr):
    """In fp32, to be added to OFFSET; without a weight, what makes a factor of 1."""
    if weight_ptr is None:
        weight_N = tl.full(column_N.shape, 1.0 - OFFSET, tl.float32)
    else:
        weight_N = tl.load(
            weight_ptr + column_N, mask=mask_N, other=0.0, eviction_policy=POLICY
        ).to(tl.float32)
    return weight_N


@triton.jit
def normalise_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    eps,
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CASTING: tl.constexpr,
):
    """BLOCK_M whole rows a program."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if x_stride is None:
        x_stride = N
    if residual_stride is None:
        residual_stride = N
    row_M = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_N = tl.arange(0, BLOCK_N)
    mask_MN = (row_M < M)[:, None] & (column_N < N)[None, :]
    out_MN = row_M[:, None] * N + column_N[None, :]

    OFFSET: tl.constexpr = 1.0 if CASTING == "gemma" else 0.0
    weight_N = _load_weight(weight_ptr, column_N, column_N < N, OFFSET, "evict_last")
    x_MN = tl.load(
        x_ptr + row_M[:, None] * x_stride + column_N[None, :], mask=mask_MN, other=0.0
    ).to(tl.float32)
    if residual_ptr is not None:
        x_MN += tl.load(
            residual_ptr + row_M[:, None] * residual_stride + column_N[None, :],
            mask=mask_MN,
            other=0.0,
        ).to(tl.float32)
        tl.store(sum_ptr + out_MN, x_MN.to(dtype), mask=mask_MN)
        x_MN = _round(x_MN, dtype)

    squares_M = tl.sum(_square(x_MN, dtype, CASTING), axis=1)
    rstd_M = _reciprocal_rms(squares_M, eps, N, dtype, CASTING)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row_M, rstd_M, mask=row_M < M)
    y_MN = _scale(x_MN, rstd_M[:, None], weight_N[None, :], dtype, CASTING)
    tl.store(y_ptr + out_MN, y_MN, mask=mask_MN)


@triton.jit
def _load_wide(x_ptr, residual_ptr, column_N, mask_N, dtype: tl.constexpr, POLICY: tl.constexpr):
    x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0, eviction_policy=POLICY).to(tl.float32)
    if residual_ptr is not None:
        x_N += tl.load(residual_ptr + column_N, mask=mask_N, other=0.0, eviction_policy=POLICY).to(
            tl.float32
        )
        x_N = _round(x_N, dtype)
    return x_N


@triton.jit
def normalise_wide_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    eps,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HELD: tl.constexpr,
    CASTING: tl.constexpr,
):
    """One row a program, read twice in blocks of columns: from memory, then from L1 or L2.

    What is read is kept for the second time (evict_last), and given up then (evict_first). The
    first HELD columns stay in registers, which leaves L1 to the others; y then has to give way.
    """
    Y_POLICY: tl.constexpr = "evict_first" if HELD else ""
    OFFSET: tl.constexpr = 1.0 if CASTING == "gemma" else 0.0
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if x_stride is None:
        x_stride = N
    if residual_stride is None:
        residual_stride = N
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * N
    if residual_ptr is not None:
        residual_ptr += row * residual_stride
        sum_ptr += row * N

    if HELD:
        column_H = tl.arange(0, HELD)
        mask_H = column_H < N
        held_H = _load_wide(x_ptr, residual_ptr, column_H, mask_H, dtype, "evict_first").to(dtype)
        if residual_ptr is not None:
            tl.store(sum_ptr + column_H, held_H, mask=mask_H)
    squares_N = tl.zeros([BLOCK_N], tl.float32)
    for start in range(HELD, N, BLOCK_N):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = _load_wide(x_ptr, residual_ptr, column_N, mask_N, dtype, "evict_last")
        if residual_ptr is not None:
            tl.store(sum_ptr + column_N, x_N.to(dtype), mask=mask_N)
        squares_N += _square(x_N, dtype, CASTING)
    squares = tl.sum(squares_N, axis=0)
    if HELD:  # not before the others are on their way
        squares += tl.sum(_square(held_H.to(tl.float32), dtype, CASTING), axis=0)
    rstd = _reciprocal_rms(squares, eps, N, dtype, CASTING)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)

    for start in range(HELD, N, BLOCK_N):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = _load_wide(x_ptr, residual_ptr, column_N, mask_N, dtype, "evict_first")
        weight_N = _load_weight(weight_ptr, column_N, mask_N, OFFSET, "evict_last")
        y_N = _scale(x_N, rstd, weight_N, dtype, CASTING)
        tl.store(y_ptr + column_N, y_N, mask=mask_N, eviction_policy=Y_POLICY)
    if HELD:
        weight_H = _load_weight(weight_ptr, column_H, mask_H, OFFSET, "evict_last")
        y_H = _scale(held_H.to(tl.float32), rstd, weight_H, dtype, CASTING)
        tl.store(y_ptr + column_H, y_H, mask=mask_H, eviction_policy=Y_POLICY)


@triton.jit
def _tell(word_ptr, value):
    """Publish a float and a flag in one 64-bit word: who sees the flag has the float.

    Returns 0, for what must come later to depend on.
    """
    word = (value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF) | (1 << 32)
    return tl.inline_asm_elementwise(
        "st.relaxed.gpu.global.b64 [$1], $2; mov.b32 $0, 0;",
        "=r,l,l",
        [word_ptr, word],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _hear(word_ptr, PARTS: tl.constexpr, WORDS: tl.constexpr):
    """Sum of the floats of PARTS words, each awaited; WORDS is the power of two above.

    The wait is PTX: a loop in the language would keep the compiler from pipelining the one around.
    """
    part_P = tl.arange(0, WORDS)
    value_P = tl.inline_asm_elementwise(
        """
        {
            .reg .pred absent;
            .reg .b32 flag;
            .reg .b64 word;
        again:
            ld.relaxed.gpu.global.b64 word, [$1];
            mov.b64 {$0, flag}, word;
            setp.eq.b32 absent, flag, 0;
            @absent bra again;
        }
        """,
        "=r,l",
        [word_ptr + tl.minimum(part_P, PARTS - 1)],
        dtype=tl.float32,
        is_pure=False,
        pack=1,
    )
    return tl.sum(tl.where(part_P < PARTS, value_P, 0.0), axis=0)


@triton.jit
def normalise_split_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    sum_ptr,
    rstd_ptr,
    word_ptr,
    x_stride,
    residual_stride,
    eps,
    M,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    WORDS: tl.constexpr,
    CASTING: tl.constexpr,
    STAGES: tl.constexpr,
):
    """PARTS programs a row, each with a block of its columns; rows strided over groups of programs.

    A program publishes its part of a row's squares, reads the next row and publishes that, and
    only then writes the first: by then the other parts have arrived. `word_ptr` is (M, PARTS) of
    zeros.

    Programs wait for others of their own launch only, in a loop of atomic reads. It ends if all of
    them get their turn, which is what a cooperative launch promises: the driver refuses a grid
    that cannot be resident as a whole, and once one thread of a cooperative grid makes progress,
    all of them eventually do (CUDA C++ execution model, Device threads). Nothing there depends on
    what else runs, nor on streams' priorities: these are hints at which waiting work comes next
    and do not preempt what runs (CUDA driver API, cuStreamCreateWithPriority). Like any kernel, one
    that has not started may be kept waiting by work of higher priority as long as that lasts; one
    that has started ends.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if x_stride is None:
        x_stride = N
    if residual_stride is None:
        residual_stride = N
    part = tl.program_id(0) % PARTS
    group = tl.program_id(0) // PARTS
    groups = tl.num_programs(0) // PARTS
    column_N = part * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_N = column_N < N
    OFFSET: tl.constexpr = 1.0 if CASTING == "gemma" else 0.0
    weight_N = _load_weight(weight_ptr, column_N, mask_N, OFFSET, "")

    last_N = tl.zeros([BLOCK_N], tl.float32)
    for i in tl.range(group, M, groups, num_stages=STAGES):
        row = tl.cast(i, tl.int64)
        x_N = tl.load(x_ptr + row * x_stride + column_N, mask=mask_N, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            x_N += tl.load(
                residual_ptr + row * residual_stride + column_N, mask=mask_N, other=0.0
            ).to(tl.float32)
            tl.store(sum_ptr + row * N + column_N, x_N.to(dtype), mask=mask_N)
            x_N = _round(x_N, dtype)
        published = _tell(
            word_ptr + row * PARTS + part, tl.sum(_square(x_N, dtype, CASTING), axis=0)
        )
        # The first time round there is no row before: this one is awaited, nothing written.
        before = tl.cast(tl.maximum(i - groups, group), tl.int64)
        squares = _hear(word_ptr + before * PARTS + published, PARTS, WORDS)
        rstd = _reciprocal_rms(squares, eps, N, dtype, CASTING)
        y_N = _scale(last_N, rstd, weight_N, dtype, CASTING)
        tl.store(y_ptr + before * N + column_N, y_N, mask=mask_N & (i > group))
        if rstd_ptr is not None:
            tl.store(rstd_ptr + before, rstd, mask=part == 0)
        last_N = x_N
    row = tl.cast(group + (M - 1 - group) // groups * groups, tl.int64)
    rstd = _reciprocal_rms(_hear(word_ptr + row * PARTS, PARTS, WORDS), eps, N, dtype, CASTING)
    tl.store(
        y_ptr + row * N + column_N, _scale(last_N, rstd, weight_N, dtype, CASTING), mask=mask_N
    )
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd, mask=part == 0)


@triton.jit
def project_wide_rows(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    projection_ptr,
    dy_stride,
    x_stride,
    N,
    BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
):
    """mean(dy⊙w⊙x)·rstd of one row a program."""
    if dy_stride is None:
        dy_stride = N
    if x_stride is None:
        x_stride = N
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    dy_ptr += row * dy_stride
    products_N = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        dy_N = tl.load(dy_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        weight_N = _load_weight(weight_ptr, column_N, mask_N, OFFSET, "evict_last")
        products_N += x_N * dy_N * (OFFSET + weight_N)
    projection = tl.sum(products_N, axis=0) / N * tl.load(rstd_ptr + row)
    tl.store(projection_ptr + row, projection)


@triton.jit
def differentiate(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    projection_ptr,
    dsum_ptr,
    dx_ptr,
    partial_ptr,
    dy_stride,
    x_stride,
    dsum_stride,
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
    RELOAD: tl.constexpr,
):
    """A block of columns (axis 0 of the grid), tiles of rows strided over axis 1; dw in registers.

    Without projections of the rows, the block of columns is all of them, or dx is not wanted.
    """
    if dy_stride is None:
        dy_stride = N
    if x_stride is None:
        x_stride = N
    if dsum_stride is None:
        dsum_stride = N
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if not RELOAD:
        weight_N = OFFSET + _load_weight(weight_ptr, column_N, column_N < N, OFFSET, "")
    dw_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in tl.range(
        tl.program_id(1), tl.cdiv(M, BLOCK_M), tl.num_programs(1), num_stages=STAGES
    ):
        row_M = tl.cast(tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask_MN = (row_M < M)[:, None] & (column_N < N)[None, :]
        x_MN = tl.load(
            x_ptr + row_M[:, None] * x_stride + column_N[None, :], mask=mask_MN, other=0.0
        ).to(tl.float32)
        dy_MN = tl.load(
            dy_ptr + row_M[:, None] * dy_stride + column_N[None, :], mask=mask_MN, other=0.0
        ).to(tl.float32)
        rstd_M = tl.load(rstd_ptr + row_M, mask=row_M < M, other=0.0)
        unit_MN = x_MN * rstd_M[:, None]
        if partial_ptr is not None:
            dw_MN += dy_MN * unit_MN
        if dx_ptr is not None:
            if RELOAD:
                weight_N = OFFSET + _load_weight(weight_ptr, column_N, column_N < N, OFFSET, "")
            m_MN = dy_MN * weight_N[None, :]
            if projection_ptr is None:
                projection_M = tl.sum(m_MN * unit_MN, axis=1) / N
            else:
                projection_M = tl.load(projection_ptr + row_M, mask=row_M < M, other=0.0)
            dx_MN = (m_MN - unit_MN * projection_M[:, None]) * rstd_M[:, None]
            if dsum_ptr is not None:
                dx_MN += tl.load(
                    dsum_ptr + row_M[:, None] * dsum_stride + column_N[None, :],
                    mask=mask_MN,
                    other=0.0,
                ).to(tl.float32)
            tl.store(
                dx_ptr + row_M[:, None] * N + column_N[None, :],
                dx_MN.to(dx_ptr.dtype.element_ty),
                mask=mask_MN,
            )
    if partial_ptr is not None:
        partial_ptr += tl.program_id(1).to(tl.int64) * N
        tl.store(partial_ptr + column_N, tl.sum(dw_MN, axis=0), mask=column_N < N)


@triton.jit
def differentiate_split_rows(
    dy_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    word_ptr,
    dsum_ptr,
    dx_ptr,
    partial_ptr,
    dy_stride,
    x_stride,
    dsum_stride,
    M,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    WORDS: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As `normalise_split_rows`; what the programs of a row tell each other is mean(m⊙x)·rstd."""
    if dy_stride is None:
        dy_stride = N
    if x_stride is None:
        x_stride = N
    if dsum_stride is None:
        dsum_stride = N
    dtype: tl.constexpr = dx_ptr.dtype.element_ty
    part = tl.program_id(0) % PARTS
    group = tl.program_id(0) // PARTS
    groups = tl.num_programs(0) // PARTS
    column_N = part * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_N = column_N < N

    dw_N = tl.zeros([BLOCK_N], tl.float32)
    last_unit_N = tl.zeros([BLOCK_N], tl.float32)  # both times rstd
    last_m_N = tl.zeros([BLOCK_N], tl.float32)
    for i in tl.range(group, M, groups, num_stages=STAGES):
        row = tl.cast(i, tl.int64)
        x_N = tl.load(x_ptr + row * x_stride + column_N, mask=mask_N, other=0.0).to(tl.float32)
        dy_N = tl.load(dy_ptr + row * dy_stride + column_N, mask=mask_N, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        weight_N = OFFSET + _load_weight(weight_ptr, column_N, mask_N, OFFSET, "")
        unit_N = x_N * rstd
        m_N = dy_N * weight_N
        if partial_ptr is not None:
            dw_N += dy_N * unit_N
        published = _tell(word_ptr + row * PARTS + part, tl.sum(m_N * unit_N, axis=0))
        before = tl.cast(tl.maximum(i - groups, group), tl.int64)
        projection = _hear(word_ptr + before * PARTS + published, PARTS, WORDS) / N
        dx_N = last_m_N - last_unit_N * projection
        if dsum_ptr is not None:
            dx_N += tl.load(dsum_ptr + before * dsum_stride + column_N, mask=mask_N, other=0.0).to(
                tl.float32
            )
        tl.store(dx_ptr + before * N + column_N, dx_N.to(dtype), mask=mask_N & (i > group))
        last_unit_N = unit_N * rstd
        last_m_N = m_N * rstd
    row = tl.cast(group + (M - 1 - group) // groups * groups, tl.int64)
    projection = _hear(word_ptr + row * PARTS, PARTS, WORDS) / N
    dx_N = last_m_N - last_unit_N * projection
    if dsum_ptr is not None:
        dx_N += tl.load(dsum_ptr + row * dsum_stride + column_N, mask=mask_N, other=0.0).to(
            tl.float32
        )
    tl.store(dx_ptr + row * N + column_N, dx_N.to(dtype), mask=mask_N)
    if partial_ptr is not None:
        tl.store(partial_ptr + group.to(tl.int64) * N + column_N, dw_N, mask=mask_N)


@triton.jit
def sum_partials(
    partial_ptr,
    dweight_ptr,
    P,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """dw = Σ over the P rows of partial sums, always in the same order.

    DEPENDENT: started before they are complete (programmatic dependent launch), to wait for them.
    """
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    total_PN = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for start in tl.range(0, P, BLOCK_P):
        row_P = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        mask_PN = (row_P < P)[:, None] & (column_N < N)[None, :]
        total_PN += tl.load(
            partial_ptr + row_P[:, None] * N + column_N[None, :], mask=mask_PN, other=0.0
        )
    dweight_N = tl.sum(total_PN, axis=0).to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + column_N, dweight_N, mask=column_N < N)


@triton.jit
def push_rows(
    x_ptr,
    tangent_ptr,
    weight_ptr,
    weight_tangent_ptr,
    rstd_ptr,
    out_ptr,
    x_stride,
    tangent_stride,
    N,
    BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The tangent of y, rstd·(x' − x·rstd²·mean(x⊙x'))⊙w + x·rstd⊙w', one row a program, read
    twice. The tangent of x or of the weight may be None.
    """
    if x_stride is None:
        x_stride = N
    if tangent_stride is None:
        tangent_stride = N
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    rstd = tl.load(rstd_ptr + row)
    slope = 0.0
    if tangent_ptr is not None:
        tangent_ptr += row * tangent_stride
        products_N = tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, N, BLOCK_N):
            column_N = start + tl.arange(0, BLOCK_N)
            mask_N = column_N < N
            x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
            tangent_N = tl.load(tangent_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
            products_N += (x_N * rstd) * tangent_N
        slope = tl.sum(products_N, axis=0) / N * rstd
    for start in range(0, N, BLOCK_N):
        column_N = start + tl.arange(0, BLOCK_N)
        mask_N = column_N < N
        x_N = tl.load(x_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
        unit_N = x_N * rstd
        out_N = tl.zeros([BLOCK_N], tl.float32)
        if tangent_ptr is not None:
            tangent_N = tl.load(tangent_ptr + column_N, mask=mask_N, other=0.0).to(tl.float32)
            weight_N = OFFSET + _load_weight(weight_ptr, column_N, mask_N, OFFSET, "evict_last")
            out_N += (tangent_N * rstd - unit_N * slope) * weight_N
        if weight_tangent_ptr is not None:
            out_N += unit_N * tl.load(weight_tangent_ptr + column_N, mask=mask_N, other=0.0).to(
                tl.float32
            )
        tl.store(out_ptr + row * N + column_N, out_N.to(out_ptr.dtype.element_ty), mask=mask_N)
