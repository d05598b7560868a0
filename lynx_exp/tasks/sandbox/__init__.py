"""A sandbox for generated code: programs are run where they can do no harm, and judged where they cannot lie.

**Judging.** Each program has two processes. The candidate's runs its code; the tester's runs the trusted test and sees
the candidate through messages of plain data (`jail.codec`), so that no object, frame, builtin or exit code of the
candidate's reaches an assertion. A program passes if the tester, behind the last assertion, reports the nonce that the
supervisor gave to it alone.

What crosses (`jail.codec`, `jail.values`): builtin types, those of collections, datetime, decimal and fractions, views,
types, NumPy's numbers and arrays of plain elements, at any depth, as exactly what they are. An object of a class that
derives from list, dict, str, int and the like is a copy that knows its object: it compares by its data, and its
methods and fields run in the candidate's process. Exceptions of own classes can be caught. All else is a reference.
Operators that a class defines are honoured only where both operands are the candidate's (`V(1) + V(2) == V(3)`). Beside
a value of the test's they are not: an object that claims to equal everything would be the right answer to everything.
Such a program, like one whose value cannot cross, is not judged: its verdict is `transport`, a score of 0 that is
counted and shown apart (`Verdict.transport`). None is forged by that.

A list, dict, set or array that the program keeps (`jail.shared`) is the same one on both sides. Threads may call in
either direction, one call at a time: a call that waits for what another thread would do in the program never ends.
StopIteration ends a `next`, an iteration or a `send`, and nothing else: from a call it is a RuntimeError, unless the
test names it, because `all(map(...))` would take it for the end of the cases.

Verdicts are those of a plain process that has the test's module beside the program's: each has global names, standard
streams, random numbers, environment, folder and decimal context of its own. A program that fails where the test sets
such a thing (by a seed, a patch, a redirection, a file, a global name) and the program's text uses it is `transport`
(`jail.side_effects`), as is a class of the test that derives from one of the program. What is not seen, and can be a
wrong 0: `is` between tuples, strings or NaNs that crossed; the order of a set that goes to the program; when an
object is collected; a list that the program changes in a call during which it calls the test back, and that the test
looks at meanwhile; what reads the bytecode of the test's functions.

A name that a test uses without defining it is a builtin if there is one, else the candidate's; the candidate's goes
before a builtin where the test uses nothing else of the candidate's, for then it is what is tested. Modules of the
standard library, NumPy and functions by which tests compare (`math.isclose`, `isclose`) are the tester's own if the
candidate imported them, and no verdict is had if it calls something else so (`jail.names`). Hand the test's own helpers
over as `Program.prelude`.

**Containing.** All tiers: empty environment, /dev/null for input and output, no descriptors but two pipes and, in
landlock and unsafe, those of library folders that root's programs could not reach otherwise; limits on address space,
CPU time, wall-clock time, threads, open files and file size; core dumps off, no new privileges, root and all
capabilities given up; killed at the end of the test or of its time, and with this process.

bubblewrap, namespaces, landlock: a system call filter besides (`jail.seccomp`), an allowlist: no new process, no
exec, no socket, no signal but to itself, no ptrace, shared memory, memfd, keys, namespaces, mounts, io_uring, bpf, nor
any change of modes, times, owners, limits or priorities (`shutil.copy` works, `copy2` is `transport`). Files: those of
the system, the interpreter and a few numeric libraries may be read (`files`), 1 MiB each may be written in an own empty
folder.

- bubblewrap: `bwrap` makes a file system of just these files, and namespaces without network; each program gets a
  process namespace and a file system of 32 MiB of its own; Landlock on top where the kernel has it.
- namespaces: the same, made here, with Landlock required.
- landlock: no namespaces. Landlock rules files, TCP, abstract sockets and, on Linux 6.12 or newer, signals; the filter
  alone stops UDP and sockets with a path, and changes of modes, which Landlock does not know.
- unsafe: process limits only. Programs can read and write the user's files, use the network and signal the user's
  processes.

**What no tier stops**: faults of the kernel, of Python or of libraries (there is one kernel, and no second line behind
a hole in it); side channels; the use of all CPU time and memory within the limits; reading the system's own files under
/usr. landlock besides: names, sizes and times of all files that the user may see; as many small files as fit into the
program's time on the disk of the temporary folder. The test itself is trusted: it runs confined as well, but one
process runs many tests.

Root's programs become another user, who must be able to read Python's own files and libraries. They may lie in a folder
that root alone may enter: bubblewrap and namespaces show them elsewhere, landlock and unsafe import from them by
descriptors (`jail.library_folders`). Files that root alone may read (an installation under a umask of 077) are named in
an error before any program is run, for their lack would look like wrong answers. For an ordinary user the limit on
threads is that user's: a program that starts all of them leaves none to those beside it.

Why no library but bubblewrap: sandlock 0.9 (Landlock and seccomp) confines in place without the system call filter and
without network rules, needs Landlock 6, and otherwise starts an interpreter per program. What is left to call are three
system calls and a filter, here by ctypes.
"""

from __future__ import annotations

from lynx_exp.tasks.sandbox.program import ExecutionError, Program, Verdict
from lynx_exp.tasks.sandbox.sandbox import Sandbox, SandboxUnavailable, open_sandbox

__all__ = ["ExecutionError", "Program", "Sandbox", "SandboxUnavailable", "Verdict", "open_sandbox"]
