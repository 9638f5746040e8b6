"""Sparse matrices as sources of samples: rows are made dense as they are read, and never all of them."""

from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Float

from hmoevae.errors import ArgumentTypeError, DataError, mismatch


@runtime_checkable
class Sparse(Protocol):
    """A sparse matrix or array of scipy, in any format; scipy itself is not imported.

    >>> import scipy.sparse
    >>> isinstance(scipy.sparse.eye_array(3), Sparse)
    True
    """

    nnz: Any
    shape: tuple[int, ...]

    def tocsr(self) -> Any:
        """The matrix with compressed rows."""
        ...

    def toarray(self) -> np.ndarray:
        """The dense array."""
        ...


def is_sparse(data: object) -> TypeGuard[Sparse]:
    """Whether data are a sparse matrix or array of scipy.

    >>> import scipy.sparse
    >>> is_sparse(scipy.sparse.eye_array(3)), is_sparse(np.eye(3))
    (True, False)
    """
    return hasattr(data, "tocsr") and hasattr(data, "nnz")


class SparseRows:
    """Rows of a sparse matrix, which become dense and floating point when they are read.

    Args:
        matrix: Rows of numbers, `(n, feature)`. One that is not CSR is converted, which copies the entries that are
            stored. Integers become float32, or float64 if one is too large for it.
        name: The name of `matrix` in error messages.

    Raises:
        ArgumentTypeError: The entries are not numbers.
        DataError: There are no rows, or the array has another number of axes than two.

    >>> import scipy.sparse
    >>> rows = SparseRows(scipy.sparse.csr_array([[0, 3], [1, 0], [0, 0]]))
    >>> len(rows), rows[1:], rows[np.array([2, 0])]
    (3, array([[1., 0.],
           [0., 0.]], dtype=float32), array([[0., 0.],
           [0., 3.]], dtype=float32))
    """

    def __init__(self, matrix: Sparse, name: str = "x") -> None:
        if len(matrix.shape) != 2 or matrix.shape[0] == 0:
            raise DataError(mismatch(name, "a sparse matrix (rows, columns) of at least one row", matrix.shape))
        self.matrix = matrix.tocsr()
        kind = self.matrix.dtype.kind
        if kind not in "biuf":
            raise ArgumentTypeError(mismatch(name, "numbers", f"a sparse matrix of {self.matrix.dtype}"))
        largest = 0 if kind == "f" or self.matrix.nnz == 0 else abs(self.matrix).max()
        exact = np.float32 if largest <= 1 << np.finfo(np.float32).nmant + 1 else np.float64
        self.dtype = self.matrix.dtype if kind == "f" else np.dtype(exact)

    def __len__(self) -> int:
        """Number of rows."""
        return self.matrix.shape[0]

    def __repr__(self) -> str:
        """The shape and the number of entries that are stored."""
        return f"<{type(self).__name__} {self.matrix.dtype}, {self.matrix.shape}, {self.matrix.nnz:,} stored>"

    def __getitem__(self, index: Any) -> Float[np.ndarray, "row feature"]:
        """The rows at a slice or an array of indices."""
        return self.matrix[index].toarray().astype(self.dtype, copy=False)
