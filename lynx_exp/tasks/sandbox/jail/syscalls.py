"""System calls by name, with their numbers on x86-64 and 64-bit ARM (`-`: there is none), from Linux 6.1's headers."""

from __future__ import annotations

HARMLESS = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 close:3:57 close_range:436:436 lseek:8:62 stat:4:- fstat:5:80 lstat:6:-
newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 rename:82:-
renameat:264:38 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 link:86:-
linkat:265:37 symlink:88:- symlinkat:266:36 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83
copy_file_range:326:285 sendfile:40:71 umask:95:166 dup:32:23 dup2:33:- dup3:292:24
pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19
timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 signalfd:282:- signalfd4:289:74 nanosleep:35:101
clock_nanosleep:230:115 pause:34:- wait4:61:260 waitid:247:95 futex:202:98 futex_waitv:449:449 sched_yield:24:124
mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 mincore:27:232
membarrier:324:283 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128 getitimer:36:102
setitimer:38:103 alarm:37:- exit:60:93 exit_group:231:94 set_robust_list:273:99 get_robust_list:274:100
set_tid_address:218:96 rseq:334:293 arch_prctl:158:- sched_getaffinity:204:123 getcpu:309:168 getpid:39:172
gettid:186:178 getppid:110:173 getpgrp:111:- getpgid:121:155 getsid:124:156 getuid:102:174 geteuid:107:175
getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 getrlimit:97:163 getrusage:98:165
getpriority:140:141 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 uname:63:160 sysinfo:99:179 times:100:153 clock_gettime:228:113 clock_getres:229:114
gettimeofday:96:169 time:201:- getrandom:318:278 recvfrom:45:207 recvmsg:47:212 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209
"""
"""What Python, its threads and numeric libraries need, and what the file rules of a tier cover completely.

Left out with intent, because no Landlock rule covers them and a descriptor for reading is enough: changes of mode,
owner, times and attributes, by path or descriptor; file handles, quotas, locks on whole files; `truncate`, inotify,
every scheduling and resource call that takes another process's id. Left out because they outlive the process or escape
its memory limit: System V and POSIX shared memory and queues, memfd.
"""

JUDGED = """
open:2:- creat:85:- openat:257:56 kill:62:129 tgkill:234:131 clone:56:220 clone3:435:435 openat2:437:437 fork:57:-
vfork:58:- renameat2:316:276 socketpair:53:199 sendto:44:206 fcntl:72:25 ioctl:16:29 prctl:157:167 prlimit64:302:261
"""
"""Allowed or refused by their arguments, or refused with an answer that programs know how to take."""

NEWEST = 462
"""Numbers above this one are unknown here; C libraries expect ENOSYS of a kernel that does not know a call either."""

ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
"""Machine name -> column of the tables, and the architecture's number in audit messages."""


def numbers(table: str, machine: str) -> dict[str, int]:
    """Name -> number of every call in `table` that exists on `machine`. KeyError for a machine not known."""
    column, _ = ARCHITECTURES[machine]
    rows = (entry.split(":") for entry in table.split())
    return {name: int(columns[column]) for name, *columns in rows if columns[column] != "-"}
