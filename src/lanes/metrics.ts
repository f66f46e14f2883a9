// What is counted of a disk.

/** Counters since the disk was attached. */
export interface BlockMetrics {
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  readBytes: number;
  writtenBytes: number;
  /** Requests that were answered with an error, by whose fault: the guest's, or the disk's. */
  badRequests: number;
  failures: number;
  /** From the ring to the response. */
  latencyMicrosSum: number;
  latencyMicrosMax: number;
  notifications: number;
  badIndices: number;
  /** How often the limits made the guest wait. */
  throttled: number;
  /** Of the reads, writes and flushes, those that the disk thread has answered, and those that the vCPU's own thread has. */
  byDiskThread: number;
  byVcpus: number;
}

export const newMetrics = (): BlockMetrics => ({
  reads: 0, writes: 0, flushes: 0, discards: 0, readBytes: 0, writtenBytes: 0, badRequests: 0, failures: 0,
  latencyMicrosSum: 0, latencyMicrosMax: 0, notifications: 0, badIndices: 0, throttled: 0, byDiskThread: 0, byVcpus: 0,
});
