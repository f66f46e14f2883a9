// Statistics of hosts and domains, as programs that embed Zazen see them. What counts or adds up time only grows.

import type { NetworkMetrics } from '../network/network.ts';
import type { DomainState } from './event-types.ts';
import type { DiskStats, NicStats } from './types.ts';

export interface VcpuStats {
  readonly id: number;
  readonly state: 'offline' | 'runnable' | 'running' | 'blocked';
  readonly instructionsRetired: number;
  /** Time on a pCPU. */
  readonly runMillis: number;
}

export interface DomainStats {
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly state: DomainState;
  /** Guest RAM as the guest sees it. */
  readonly memoryBytes: number;
  /** Frames that were taken for it, tables included: what it has written. Those of its kernel file are the host's. */
  readonly residentBytes: number;
  readonly vcpus: readonly VcpuStats[];
  readonly cpuWeight: number;
  /** 0: no limit. */
  readonly cpuCapPercent: number;
  /** Sums over the vCPUs. */
  readonly instructionsRetired: number;
  readonly runMillis: number;
  /** Made by the guest since it was created. */
  readonly hypercalls: number;
  /** Accesses for which no TLB had an entry. */
  readonly tlbMisses: number;
  /** Accesses to system registers that this CPU does not have, each UNDEFINED for the guest. */
  readonly unknownSystemRegisters: number;
  readonly consoleOutBytes: number;
  readonly consoleInBytes: number;
  readonly nics: readonly NicStats[];
  /** When it has disks. */
  readonly disks?: readonly DiskStats[];
  /** When it is of type hvm. */
  readonly emulated?: EmulatedStats;
  /** When it was restored. */
  readonly image?: ImageLoadStats;
}

/** Of emulated devices, since the domain was built; modulo 2^32. */
export interface EmulatedStats {
  /** Accesses to registers. */
  readonly accesses: number;
  /** How many of them had something to tell the host's thread. */
  readonly hostCalls: number;
}

/** Of the image that a domain was restored from, for all domains that were; bytes and pages since it was opened. */
export interface ImageLoadStats {
  readonly path: string;
  /** Pages that are not zero, and how many of them are in memory. */
  readonly pageCount: number;
  readonly pagesDone: number;
  /** Nothing has to be read any more; the file is closed. */
  readonly isComplete: boolean;
  /** What the saved guest was using, and is read first. */
  readonly workingSetPages: number;
  /** Read because a guest touched them, or others near them, and in how many requests. */
  readonly touchedPages: number;
  readonly touchRequests: number;
  readonly bytesRead: number;
  /** False where the file system refused O_DIRECT. */
  readonly direct: boolean;
  /** Why the rest is not being read. */
  readonly failure?: string;
}

export interface HostStats {
  /** Machine memory, the host's records included. */
  readonly memoryBytes: number;
  /** Frames that a guest can get at once. */
  readonly freeBytes: number;
  /** Of the free ones: clean; waiting to be scrubbed; being scrubbed at this moment. */
  readonly cleanBytes: number;
  readonly dirtyBytes: number;
  readonly scrubbingBytes: number;
  /** In use by more than one domain or checkpoint; of what they share by sharing a table, the table alone counts. */
  readonly sharedBytes: number;
  /** Kernels and the like that the host keeps for the next domain. In use, but given up when memory is needed. */
  readonly cachedBytes: number;
  /** Still charged to domains that were destroyed and whose memory is being given back. */
  readonly releasingBytes: number;
  readonly pcpus: readonly PcpuStats[];
  readonly activity: ActivitySamples;
  readonly codeCache: CodeCacheStats;
  /** Time that the host's own thread was at work: back ends of devices, the store, the toolstack. */
  readonly hostThreadMillis: number;
  /** The same of the thread that networks live in; 0 as long as there is no card. */
  readonly networkThreadMillis: number;
  /** Live domains. */
  readonly domains: number;
  /** By name, those that are in use or were given options. */
  readonly networks: Readonly<Record<string, NetworkMetrics>>;
  readonly uptimeMillis: number;
  /** It has done what it puts off while its first guest boots, and so has all its threads; verbs are quick from then on. */
  readonly isSettled: boolean;
}

/** Counts of looks at the pCPUs, each one of which was doing one of these; looked at while somebody asks for statistics. */
export interface ActivitySamples {
  /** Guest code, compiled or interpreted. */
  readonly code: number;
  /** Page-table walks and whatever else a TLB miss takes. */
  readonly memory: number;
  /** Decoding guest code, and taking in what was compiled. */
  readonly decoding: number;
  /** System registers, hypercalls, exceptions, TLB maintenance. */
  readonly hypervisor: number;
  /** Registers of emulated devices, the interrupt controller's among them. */
  readonly devices: number;
  /** In no vCPU. */
  readonly idle: number;
}

export interface CodeCacheStats {
  /** Pages of guest code that can be held decoded, and that are. */
  readonly pages: number;
  readonly usedPages: number;
  /** Pieces of it that are compiled. */
  readonly regions: number;
  /** Pieces that processes before this one have left in the store, that were made use of here, and that were added to it. */
  readonly storedRegions: number;
  readonly foundRegions: number;
  readonly addedRegions: number;
}

export interface PcpuStats {
  readonly id: number;
  readonly busyMillis: number;
  /** Of it, in slices that ended in compiled code. */
  readonly compiledMillis: number;
  /** How often another thread has woken it, modulo 2^32. */
  readonly wakeUps: number;
}