// The public API as types: what a program that embeds Zazen, and the command line, see of a host and its domains.
//
//   Host ──create(DomainSpec)──▶ Domain ──┬─ console   bytes to and from the guest's hvc0
//     │                                   ├─ exec      the one command of `spec.exec`, its output, input and status
//     └─ stats(), audit(), close()        ├─ events()  what becomes of it, in order
//                                         └─ pause, unpause, shutdown, destroy, stats
//
// Failures that the caller can do something about are `ZazenError`s with stable codes; the codes are named with each
// method. A guest that misbehaves never makes a method throw: it shows as an event.

import type { Duplex, Readable, Writable } from 'node:stream';
import type { Clock } from '../base/clock.ts';
import type { Random } from '../base/random.ts';
import type { AuditReport } from '../memory/audit.ts';
import type { NetworkSettings } from '../network/network.ts';
import type { Store } from '../xenstore/store.ts';
import type {
  DomainEvent, DomainState, EventSubscription, HostEvent, ShutdownReason, SubscribeOptions, SuspendOptions, SuspendStats,
  SuspendVia,
} from './event-types.ts';
import type { DomainStats, HostStats } from './stats-types.ts';

export type * from './event-types.ts';
export type * from './stats-types.ts';

/** A number of bytes, or text as `parseSize` takes it: `400MiB`, `400M`, `1GiB`; digits alone are MiB, as in xl. */
export type Size = number | string;

export interface HostOptions {
  /** Machine memory, for all guests and the host's records; default 2GiB, at most 16GiB (above 4GiB: memory64). */
  memory?: Size;
  /** Worker threads that run guest code; default: as many as there are processors, at most 4. */
  pcpus?: number;
  /** Default: the system's clock and randomness. Others are the main thread's only: guests see the system's time. */
  clock?: Clock;
  random?: Random;
  /** Gets a line, without newline, for each thing worth telling the operator; default: nowhere. */
  log?: (line: string) => void;
  /**
   * Networks with other options than the usual ones, by name; a guest's card that names none comes to `default`, and any
   * other name is a private network of its own, made when it is first named. Errors: ZAZEN_NETWORK_*.
   */
  networks?: Readonly<Record<string, NetworkSettings>>;
  /** Where guest files are kept; default: `$ZAZEN_CACHE_DIR`, else `zazen` in `$XDG_CACHE_HOME` or `~/.cache`. */
  cacheDir?: string;
}

/** How the guest's terminal treats the bytes of a command; the three modes are described in guest/init-script.ts. */
export type ExecTty = 'pipe' | 'raw' | 'cooked';

export interface TerminalSpec {
  rows: number;
  columns: number;
  /** Value of TERM; default `xterm`. */
  type?: string;
}

export interface ExecSpec {
  /** For `sh -c`, any length. */
  command: string;
  /** Default `pipe`: bytes pass unaltered both ways, and the end of input is the end of file. */
  tty?: ExecTty;
}

/** A disk of a guest. */
export interface DiskSpec {
  /** File or block device on the host. */
  readonly path: string;
  /** `layer`: Zazen's own (docs/formats/layer.md). Default: `layer` if the name of the file ends in that, else `raw`. */
  readonly format?: 'raw' | 'layer' | undefined;
  /** The guest cannot write to it, and any number of guests may have it. */
  readonly readOnly?: boolean | undefined;
  /** What the guest calls it: `xvda`, `xvdb` …; default: the first that is free. */
  readonly target?: string | undefined;
  /** For reads and writes together. */
  readonly bytesPerSecond?: number | undefined;
  readonly requestsPerSecond?: number | undefined;
  /**
   * What the guest discards is given back to the host's file system. Default true; a raw file needs `fallocate` of
   * util-linux for it.
   */
  readonly discard?: boolean | undefined;
  /** Offers the guest to grant its pages once for all; it then copies what it writes and reads. Default false. */
  readonly persistentGrants?: boolean | undefined;
}

/** Counters since the disk was attached. */
export interface DiskStats {
  readonly target: string;
  /** Its number, as `virtual-device` in the store. */
  readonly device: number;
  readonly path: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** False: what the guest writes is gone with it, as with forks. */
  readonly lasting: boolean;
  /** False where the file system refused O_DIRECT for one of its files. */
  readonly direct: boolean;
  /** Whether the guest can give space back. */
  readonly discard: boolean;
  /** Of the ring that the guest has made; 0: it has made none, or has a virtio disk. */
  readonly ringPages: number;
  /** The guest keeps its pages granted. */
  readonly persistentGrants: boolean;
  /** Files that it consists of, the newest first. */
  readonly layers: readonly string[];
  readonly reads: number;
  readonly writes: number;
  readonly flushes: number;
  readonly discards: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  /** Answered with an error, because of the guest or because of the disk. */
  readonly badRequests: number;
  readonly failures: number;
  readonly notifications: number;
  readonly badIndices: number;
  readonly throttled: number;
  /** Of the reads, writes and flushes, those that the disk thread has answered, and those that the vCPU's own thread has. */
  readonly byDiskThread: number;
  readonly byVcpus: number;
  readonly latencyMicrosMean: number;
  readonly latencyMicrosMax: number;
}

export interface DetachOptions {
  /** How long the guest may take to let go; default 10 s. */
  readonly timeoutMillis?: number | undefined;
  /** Then it loses the disk whether it has let go or not. */
  readonly force?: boolean | undefined;
}

/** What to create. Every field has a default: `host.create({})` boots Debian's cloud kernel to a shell. */
export interface DomainSpec {
  /** Unique on the host, 1 to 64 of `A-Z a-z 0-9 _ . + -`, not all digits; default `domain-ID`. */
  name?: string;
  /**
   * `pvh` (default): Xen's interfaces, with paravirtual devices. `hvm`: a machine with emulated devices (PL011, PL031,
   * virtio-mmio) for guests without Xen drivers; docs/hvm.md.
   */
  type?: 'pvh' | 'hvm';
  /** Default: random. */
  uuid?: string;
  /** Guest RAM; default 400MiB. */
  memory?: Size;
  /** Default 1; at most 64. */
  vcpus?: number;
  /**
   * `debian` (the cloud flavour, default) and `debian-generic` are fetched when not in the cache; anything else is the
   * path of an arm64 Image, Image.gz or EFI zboot file.
   */
  kernel?: string;
  /** `default`: Zazen's own initramfs with the modules of the Debian kernel; `none`; or the path of a file. */
  initrd?: string;
  /**
   * Added after the default command line, `console=hvc0`, with type `hvm` `console=ttyAMA0` (and `panic=-1` with `exec`). Linux lets the last word of a
   * kind win, so whatever the default says can be overruled.
   */
  cmdline?: string;
  /** One command to run instead of a shell, after which the guest powers off. Needs Zazen's init in the initramfs. */
  exec?: string | ExecSpec;
  /** Of the person at the console; without it the guest believes what its kernel believes. */
  terminal?: TerminalSpec;
  disks?: readonly DiskSpec[];
  /** Network cards, eth0 first; default: none. `[{}]` is one on the network `default`, with DHCP, DNS and NAT. */
  nics?: readonly NicSpec[];
  /** Create it paused: it runs from `unpause()` on. */
  paused?: boolean;
  /** What it gets of the pCPUs when others want them too, against their weights: 1 to 65535, default 256. */
  cpuWeight?: number;
  /** Most that its vCPUs get together, in percent of one pCPU, whether others want it or not; default 0: no limit. */
  cpuCapPercent?: number;
}

/** Both as in DomainSpec; what is left out stays. Takes effect at once. Forks have what the domain had at the checkpoint. */
export interface CpuShare {
  readonly cpuWeight?: number | undefined;
  readonly cpuCapPercent?: number | undefined;
}

export interface ProfileOptions {
  /** Of a vCPU's running time between two samples; default 1000, at least 100. */
  readonly intervalMicros?: number | undefined;
}

/** Samples are being taken. */
export interface Profiling {
  /**
   * Takes no more. The guest stands still while its kernel's names are looked up; of a guest without them, or one that has
   * been destroyed, there are addresses.
   */
  stop(): Promise<Profile>;
}

/** What a guest's vCPUs did with the time that they had, by function of its kernel; processes' code is told by page. */
export interface Profile {
  readonly samples: number;
  readonly cpuMicros: number;
  /** For Chrome's DevTools, Visual Studio Code, speedscope; as JSON, in a file `*.cpuprofile`. */
  toCpuProfile(): CpuProfile;
  /** A line for each stack, `outermost;…;innermost MICROSECONDS`: for flame graphs and speedscope. */
  toFolded(): string;
}

/** As V8's inspector defines it (Profiler.Profile); times are microseconds. */
export interface CpuProfile {
  nodes: {
    id: number;
    callFrame: { functionName: string; scriptId: string; url: string; lineNumber: number; columnNumber: number };
    hitCount: number;
    children: number[];
  }[];
  startTime: number;
  endTime: number;
  samples: number[];
  timeDeltas: number[];
}

export interface NicSpec {
  /** Name of the network, as a domain's name; guests on one network see each other, others do not. Default `default`. */
  readonly network?: string;
  /** `00:16:3e:12:34:56`; default: from the guest's UUID. */
  readonly mac?: string;
  /** IPv4 address that DHCP gives it; default: a free one. */
  readonly address?: string;
  /**
   * Ports of the host that lead to the guest: `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`. Forks have none of them; a restored
   * guest takes back those that are free.
   */
  readonly forwards?: readonly string[];
  /** Most that the guest may send. */
  readonly rateBytesPerSecond?: number;
}

/** Counters since the card was attached; tx is what the guest sends. */
export interface NicStats {
  /** Counted from 0 in the order in which cards are attached; none is used twice. */
  readonly handle: number;
  readonly network: string;
  readonly mac: string;
  readonly address: string;
  /** The guest's driver is there. */
  readonly isConnected: boolean;
  readonly txFrames: number;
  readonly txBytes: number;
  readonly rxFrames: number;
  readonly rxBytes: number;
  /** Frames that were malformed or from others' addresses. */
  readonly txErrors: number;
  /** Frames that the guest got with an error, and those that it had no room for in the end. */
  readonly rxErrors: number;
  readonly rxDropped: number;
  /** Events sent to the guest. */
  readonly notifications: number;
  /** In force, with the host's ports as they are. */
  readonly forwards: readonly string[];
  /** Of a guest that was restored: those whose port of the host it could not have back. */
  readonly missingForwards: readonly string[];
}

export interface CreateOptions {
  /** Ends fetching and building. Once `create` has resolved it has no effect. */
  signal?: AbortSignal;
  /** Gets a line for each step that takes time (fetching); default: that of the host. */
  log?: (line: string) => void;
}

/** `first`: hvc0, or with type hvm the serial port. `virtio`: type hvm only. */
export type ConsoleDevice = 'first' | 'virtio';

/** The command of a domain that was created with `exec`. It has taken over the domain's `console`. */
export interface GuestCommand {
  /** What the command writes, standard output and error as one stream, byte for byte; ends when it has ended. */
  readonly output: Readable;
  /** What the command reads; `end()` is its end of file. Bytes wait here until the command has started. */
  readonly input: Writable;
  /** Everything else on the console: boot messages before, the kernel's words after. Drops what nobody reads. */
  readonly log: Readable;
  /** Resolves when the command is about to get its first instruction. Rejects as `result` does. */
  readonly started: Promise<void>;
  /**
   * Status as a shell has it: 0–255, 128+n for signal n. Rejects with ZazenError ZAZEN_EXEC_LOST when the domain went
   * before the command ended. Nobody needs to listen: it never becomes an unhandled rejection.
   */
  readonly result: Promise<{ readonly status: number }>;
}

/** Microseconds of wall time. */
export interface CheckpointStats {
  /** Until the guest stood still. */
  readonly stopMicros: number;
  /** From before the guest was asked to stop until its vCPUs ran on, or until now if none has got to it yet. */
  readonly downtimeMicros: number;
  /** All that `checkpoint` took after the state of the devices was saved, while the guest ran. */
  readonly totalMicros: number;
}

/** Microseconds of wall time. */
export interface RollbackStats {
  readonly stopMicros: number;
  /** As of a checkpoint. */
  readonly downtimeMicros: number;
  /** With putting back console and store. */
  readonly totalMicros: number;
}

export interface ForkSpec {
  /** As in DomainSpec; default `domain-ID`. */
  readonly name?: string;
  /** Default: random. */
  readonly uuid?: string;
  /** It runs from `unpause()` on. */
  readonly paused?: boolean;
}

/** A frozen state of a domain, in memory. It outlives the domain, and costs what the domain has changed since. */
export interface Checkpoint extends AsyncDisposable {
  /** 1, 2, 3 … within the process. */
  readonly id: number;
  /** Of the domain that it was taken of, as it was then. */
  readonly domainId: number;
  readonly domainName: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** Unix time in milliseconds, with fractions. */
  readonly createdMillis: number;
  readonly stats: CheckpointStats;
  /**
   * Makes domains that go on from here, each with an id, a name and a UUID of its own; what else tells them apart, and
   * what does not, is in docs/identity-of-forks.md. Their consoles begin with the original's history; they have no
   * `exec`. All are made or none. Errors: ZAZEN_DOMAIN_LIMIT, ZAZEN_DOMAIN_NAME_TAKEN, ZAZEN_SPEC_NAME, _UUID,
   * ZAZEN_CHECKPOINT_GONE, ZAZEN_HOST_CLOSED.
   * @param wanted how many; default 1
   */
  fork(wanted?: number | readonly ForkSpec[]): Promise<Domain[]>;
  /**
   * Writes an image that is a core dump as well; see docs/formats/image.md. The file has its name when it is complete
   * and durable, and not before. Errors: ZAZEN_IMAGE_CREATE, _NO_SPACE, _WRITE, ZAZEN_CHECKPOINT_GONE; `signal.reason`.
   */
  save(path: string, options?: SaveOptions): Promise<SaveStats>;
  /** Forks live on. Destroyed twice is destroyed; a save that is under way ends first. */
  destroy(): Promise<void>;
}

export interface SaveProgress {
  readonly pagesDone: number;
  readonly pageCount: number;
}

export interface TransferOptions {
  /** About a hundred times, whatever the size. */
  readonly onProgress?: ((progress: SaveProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface SaveOptions extends TransferOptions {
  /**
   * Path of an image of the same guest, or of a fork's or a restored one's: pages that it has already are left to it, and
   * the new file is of use only together with it. What differs is found by comparing trees where the checkpoint that was
   * saved there is still held, else by comparing checksums. Errors beside those of `save`: ZAZEN_IMAGE_*; _PARENT when it is
   * of a guest of another size, or the last of a chain as long as one may be.
   */
  readonly parent?: string;
}

export interface DomainSaveOptions extends SaveOptions {
  /**
   * Suspends the domain so before (errors: of `suspend`), and resumes it as soon as its state is taken; one that is
   * suspended is saved as it is. Default: the guest notices nothing.
   */
  readonly via?: SuspendVia | 'auto' | undefined;
}

export interface SaveStats {
  readonly pagesWritten: number;
  readonly zeroPages: number;
  /** Left to the parent. */
  readonly parentPages: number;
  /** What the disk got; holes take no place. In so many requests. */
  readonly bytesWritten: number;
  readonly requests: number;
  readonly fileBytes: number;
  /** False where the file system refused O_DIRECT and the page cache was used. */
  readonly direct: boolean;
  /** Until all was with the file system, until it was durable under its name, and the sum. */
  readonly writeMillis: number;
  readonly syncMillis: number;
  readonly millis: number;
}

export interface DomainSaveStats extends SaveStats {
  /** When it was suspended for it. */
  readonly suspend?: SuspendStats;
}

/** How an image becomes memory. Progress is told when it is not lazy. */
export interface LoadOptions extends TransferOptions {
  /**
   * Default true: nothing waits for the image to be read; a page is read when it is touched, and meanwhile all others are,
   * one after the other. False: all pages are read first.
   */
  readonly lazy?: boolean;
  /** False: only pages that are touched are read, until somebody asks for all of them (`Domain.load`, saving). */
  readonly readAhead?: boolean;
}

export interface RestoreOptions extends LoadOptions {
  /** Default: those of the saved domain; a UUID that another domain has is replaced by a random one. */
  readonly name?: string;
  readonly uuid?: string;
  /** It runs from `unpause()` on. */
  readonly paused?: boolean;
}

export interface Domain extends AsyncDisposable {
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly state: DomainState;
  /** When `state` is `shutdown`. */
  readonly shutdownReason: ShutdownReason | undefined;
  /**
   * Bytes from and to hvc0. Reading starts with the history that is kept (at least 64 KiB); a reader that does not read
   * stops the guest's console, not the guest. Ends after the last byte when the domain has shut down or is destroyed.
   */
  readonly console: Duplex;
  /**
   * A stream of its own beside `console`, as that: each sees everything. Destroy it when done. Error:
   * ZAZEN_CONSOLE_MISSING.
   */
  attachConsole(device?: ConsoleDevice): Duplex;
  /** When the spec had `exec`. */
  readonly exec: GuestCommand | undefined;
  /** What becomes of it; each call is a subscription of its own. Ends after `destroyed`. */
  events(options?: SubscribeOptions): EventSubscription<DomainEvent>;
  /** When it resolves, no vCPU runs. Paused twice is paused. Errors: ZAZEN_DOMAIN_GONE, also of the next two. */
  pause(): Promise<void>;
  unpause(): Promise<void>;
  /** Errors: ZAZEN_SPEC_CPU_SHARE, ZAZEN_DOMAIN_GONE. */
  setCpuShare(share: CpuShare): void;
  /** Samples the guest until `stop`. Errors: ZAZEN_PROFILE_INTERVAL, ZAZEN_DOMAIN_GONE. */
  profile(options?: ProfileOptions): Profiling;
  /**
   * Resolves when all memory that the domain was restored with has been read; reads what is missing as fast as it goes. At
   * once for a domain that was not restored. Errors: ZAZEN_IMAGE_* and ZAZEN_HOST_OUT_OF_MEMORY, neither of which
   * concerns the guest before it needs such a page; ZAZEN_DOMAIN_GONE; `signal.reason`.
   */
  load(options?: TransferOptions): Promise<void>;
  /**
   * Asks the guest, by `control/shutdown` in the store, with type `hvm` by a button (KEY_POWER, KEY_RESTART); does not wait
   * for it: see `waitForShutdown`. Error: ZAZEN_HVM_UNHEARD if the guest has no driver for the buttons.
   */
  shutdown(options?: { reason?: 'poweroff' | 'reboot' }): Promise<void>;
  /** When the guest has stopped, by itself or by being destroyed; at once if it has already. */
  waitForShutdown(): Promise<ShutdownReason | 'destroyed'>;
  /**
   * Stops the guest at a point of its own choosing, if it can: see `SuspendOptions`. Its time stands still until `resume`,
   * when that of a guest which has suspended itself goes on by what has passed;
   * meanwhile it can be checkpointed, saved, forked and destroyed, and forks and restored domains go on by themselves.
   * Errors: ZAZEN_SUSPEND_NOT_OFFERED, _NO_ANSWER, _PAUSED, and then it runs on and is told no more (an answer that comes
   * after all is answered by resuming it at once); ZAZEN_SUSPEND_UNDER_WAY, ZAZEN_DOMAIN_SUSPENDED,
   * ZAZEN_SUSPEND_TIMEOUT_RANGE; ZAZEN_DOMAIN_SHUTDOWN, ZAZEN_DOMAIN_GONE, also when that happens instead;
   * `signal.reason`.
   */
  suspend(options?: SuspendOptions): Promise<SuspendStats>;
  /**
   * A suspended domain goes on where it was, and the guest is told that its suspending was cancelled; one that is not
   * suspended is left alone. Errors: ZAZEN_DOMAIN_SHUTDOWN, ZAZEN_DOMAIN_GONE.
   */
  resume(): Promise<void>;
  /**
   * Freezes the domain's state and lets it go on; nothing is asked of the guest. A paused domain stays paused. Errors:
   * ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_DOMAIN_SHUTDOWN, ZAZEN_DOMAIN_BUSY, ZAZEN_DOMAIN_GONE; the domain is as before.
   */
  checkpoint(): Promise<Checkpoint>;
  /** A checkpoint into a file (see Checkpoint.save); the domain goes on. Errors: of both. */
  save(path: string, options?: DomainSaveOptions): Promise<DomainSaveStats>;
  /** The same file by another name: every image is a core dump, for gdb and its like. */
  dumpCore(path: string, options?: TransferOptions): Promise<SaveStats>;
  /**
   * Puts the domain back to a checkpoint of itself, of a fork, or of what it is a fork of; it keeps its identity. Also
   * when it has shut down; `console` is a new stream then. A paused domain stays paused; it is suspended afterwards if
   * the guest had suspended itself at the checkpoint, and not otherwise. Whoever reads its console
   * goes on with what the guest says from there: what it said since the checkpoint has been said. Errors:
   * ZAZEN_CHECKPOINT_FOREIGN, ZAZEN_CHECKPOINT_GONE, and those of `checkpoint`; the domain is as before.
   */
  rollback(checkpoint: Checkpoint): Promise<RollbackStats>;
  /** Gives the running guest another disk. @returns its target. Errors: ZAZEN_DISK_*, ZAZEN_DOMAIN_GONE, also of the next two */
  attachDisk(spec: DiskSpec): Promise<string>;
  /** Asks the guest to let go of a disk, and takes it away. Errors: ZAZEN_DISK_NOT_ATTACHED, _BUSY when it does not let go. */
  detachDisk(target: string, options?: DetachOptions): Promise<void>;
  /** The guest hears of it. Errors: ZAZEN_DISK_NOT_ATTACHED, _SIZE, _SPACE, _IO */
  resizeDisk(target: string, size: Size): Promise<void>;
  /** A further network card. Errors: ZAZEN_SPEC_NIC, ZAZEN_NETWORK_*, ZAZEN_PORT_*, ZAZEN_DOMAIN_GONE. */
  attachNic(spec?: NicSpec): Promise<NicStats>;
  /**
   * Opens a port of the host that leads to the guest, by a card (default: the first one) whatever its type.
   * @returns it with the host's port as it is. Errors: ZAZEN_USAGE, ZAZEN_NIC_UNKNOWN, ZAZEN_PORT_*, ZAZEN_DOMAIN_GONE.
   */
  addForward(forward: string, handle?: number): Promise<string>;
  /** Connections that came by it go on. Errors: ZAZEN_FORWARD_UNKNOWN, ZAZEN_DOMAIN_GONE. */
  removeForward(forward: string): Promise<void>;
  /** Asks the guest to let go of a card; after some seconds it is gone in any case. Errors: ZAZEN_NIC_UNKNOWN, _GONE. */
  detachNic(handle: number): Promise<void>;
  /** Returns when the domain is unreachable, and what it wrote to its disks is in their files. Destroyed twice is destroyed. */
  destroy(): Promise<void>;
  /** Also after `destroy`: as it was then. */
  stats(): DomainStats;
}

/** The toolstack's end of the store: it may read and write everything. Domain N's own part is `/local/domain/N`. */
export type HostStore =
  Pick<Store, 'read' | 'readBytes' | 'write' | 'exists' | 'list' | 'mkdir' | 'rm' | 'getPerms' | 'setPerms' | 'transaction' | 'watch'>;

export interface Host extends AsyncDisposable {
  readonly store: HostStore;
  /**
   * Loads and starts a guest. Errors: ZAZEN_SPEC_* (domain-spec.ts), ZAZEN_KERNEL_* (guest/kernel.ts), ZAZEN_GUEST_*
   * (fetching), ZAZEN_INITRD_UNREADABLE, ZAZEN_DOMAIN_MEMORY (too little for kernel and initramfs, or more than the
   * host has), ZAZEN_DOMAIN_NAME_TAKEN, ZAZEN_DOMAIN_LIMIT, ZAZEN_HOST_CLOSED; `signal.reason` when aborted.
   */
  create(spec?: DomainSpec, options?: CreateOptions): Promise<Domain>;
  /**
   * A domain that goes on where an image was saved, while its pages are still being read (`lazy`). The file may be
   * unlinked or replaced meanwhile, not altered: see the event `stalled`. Errors: ZAZEN_IMAGE_* (the file is missing,
   * torn, altered, of another version), ZAZEN_HOST_OUT_OF_MEMORY, ZAZEN_DOMAIN_LIMIT, ZAZEN_DOMAIN_NAME_TAKEN,
   * ZAZEN_SPEC_NAME, _UUID, ZAZEN_HOST_CLOSED; `signal.reason`.
   */
  restore(path: string, options?: RestoreOptions): Promise<Domain>;
  /** The same as a checkpoint, to fork any number of domains from that share what they do not change. */
  loadCheckpoint(path: string, options?: LoadOptions): Promise<Checkpoint>;
  /** Live ones, by id. */
  domains(): Domain[];
  /** What becomes of any of the domains. Ends when the host is closed. */
  events(options?: SubscribeOptions): EventSubscription<HostEvent>;
  stats(): HostStats;
  /** Accounts for every frame of the machine; stops all guests meanwhile. `problems` is empty when all is well. */
  audit(options?: AuditOptions): Promise<AuditReport>;
  /** Destroys all domains and ends the workers; when it resolves, none is left. Closed twice is closed. */
  close(): Promise<void>;
}

export interface AuditOptions {
  /** Also reads every frame that is said to be zero: a second or less for each GiB. */
  readonly readClean?: boolean;
}

/** The one way to get a host. Errors: ZAZEN_HOST_MEMORY_SIZE, ZAZEN_HOST_MEMORY_UNAVAILABLE, ZAZEN_SPEC_*, _NETWORK_*. */
export type StartHost = (options?: HostOptions) => Promise<Host>;
