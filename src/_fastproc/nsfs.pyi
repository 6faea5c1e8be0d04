import numpy as np
from numpy.typing import NDArray

INITIAL_USER: int  # inode numbers of the initial namespaces
INITIAL_PID: int

def namespace_id(fd: int) -> int: ...  # OSError, as all below
def namespace_owner(fd: int) -> int: ...
def namespace_parent(fd: int) -> int: ...  # a new descriptor
def namespace_user(fd: int) -> int: ...  # a new descriptor
def sort_by_mm(
    pids: NDArray[np.int32],  # (N,) thread ids; those that can be compared are moved to the front
) -> tuple[int, int, list[int]]: ...  # how many, how many denied, where each address space begins
def other_tables(
    tid: int,  # a live thread, in our own pid namespace, as the others
    tids: NDArray[np.int32],  # (N,)
) -> list[int]: ...  # of each: 0 the same descriptor table, 1 another one, or -errno
