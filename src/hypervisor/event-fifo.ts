// FIFO event channels: linking events into the queues of a vCPU (layout in abi/xen-event-channel.ts). All functions
// need the lock of the domain, so there is one producer; the consumer is the guest, which at any time may take an
// event out of a queue, i.e. clear LINKED and the link of the event's word in one atomic step.
//
// The hypervisor knows the tail of each queue. Whether the queue is empty is seen from the tail's word: while it is
// LINKED the guest has not come to it and will see a link written there; when it is not, the guest has finished the
// queue and will start again from `head`.

import { DOMAIN, HELD_FRAME, PORT, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES, FRAME_WORDS } from '../abi/machine-memory.ts';
import {
  EVTCHN_FIFO_LINKED, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_PENDING, EVTCHN_FIFO_WORDS_PER_PAGE,
  evtchnFifoControlBlock,
} from '../abi/xen-event-channel.ts';
import type { DomainRecord } from './domain-record.ts';

/** A guest changes a tail's word a few times at most while we link; one that goes on spoils its own queue. */
const LINK_ATTEMPTS = 64;

/** Index in u32 of a port's event word; 0 when the guest has not given that page. */
export function fifoWord(record: DomainRecord, port: number): number {
  const page = Math.floor(port / EVTCHN_FIFO_WORDS_PER_PAGE);
  if (page >= record.get(DOMAIN.at.fifoPages)) return 0;
  const mfn = record.get(DOMAIN.at.fifoArray + page * HELD_FRAME.sizeBytes + HELD_FRAME.at.mfn);
  return mfn * FRAME_WORDS + (port % EVTCHN_FIFO_WORDS_PER_PAGE);
}

/**
 * Makes an event pending and, unless it is masked or linked already, links it.
 * @returns the vCPU whose upcall must be set, -1: none
 */
export function fifoRaise(record: DomainRecord, port: number, portAt: number): number {
  const { u8, u32 } = record.memory;
  const word = fifoWord(record, port);
  if (word === 0) {
    u8[portAt + PORT.at.deferred] = 1;
    return -1;
  }
  u8[portAt + PORT.at.deferred] = 0;
  Atomics.or(u32, word, EVTCHN_FIFO_PENDING);
  return fifoLink(record, port, portAt, word);
}

/** Unmasks, and delivers what is pending. @returns as fifoRaise */
export function fifoUnmask(record: DomainRecord, port: number, portAt: number): number {
  const word = fifoWord(record, port);
  if (word === 0) return -1;
  const before = Atomics.and(record.memory.u32, word, ~EVTCHN_FIFO_MASKED);
  return (before & EVTCHN_FIFO_PENDING) === 0 ? -1 : fifoLink(record, port, portAt, word);
}

function fifoLink(record: DomainRecord, port: number, portAt: number, word: number): number {
  const { u8, u16, u32 } = record.memory;
  const vcpuId = u16[(portAt + PORT.at.vcpu) / 2]!;
  const entry = record.vcpuEntry(vcpuId);
  const control = u32[(entry + VCPU_ENTRY.at.control + HELD_FRAME.at.mfn) / 4]!;
  // A vCPU that comes up later finds what is pending for it in init_control.
  if (control === 0) return -1;
  if ((Atomics.load(u32, word) & EVTCHN_FIFO_MASKED) !== 0) return -1;
  if ((Atomics.or(u32, word, EVTCHN_FIFO_LINKED) & EVTCHN_FIFO_LINKED) !== 0) return -1;

  const priority = u8[portAt + PORT.at.priority]!;
  leaveOldQueue(record, port, portAt, vcpuId, priority);
  const block = (control * FRAME_BYTES + u32[(entry + VCPU_ENTRY.at.controlOffset) / 4]!) / 4;
  const tailAt = (entry + VCPU_ENTRY.at.tails) / 4 + priority;
  const tail = u32[tailAt]!;
  u32[tailAt] = port;
  // A tail that is this very port was taken out before: it looks linked only because that was done just now.
  if (tail !== 0 && tail !== port && appendTo(record, tail, port)) return -1;
  Atomics.store(u32, block + evtchnFifoControlBlock.at.head / 4 + priority, port);
  const ready = Atomics.or(u32, block + evtchnFifoControlBlock.at.ready / 4, 1 << priority);
  return (ready & (1 << priority)) === 0 ? vcpuId : -1;
}

/** An event that moves to another queue must not be taken for the tail of its old one any more. */
function leaveOldQueue(record: DomainRecord, port: number, portAt: number, vcpuId: number, priority: number): void {
  const { u8, u16, u32 } = record.memory;
  const oldVcpu = u16[(portAt + PORT.at.linkedVcpu) / 2]!;
  const oldPriority = u8[portAt + PORT.at.linkedPriority]!;
  if (oldVcpu === vcpuId && oldPriority === priority) return;
  const oldTail = (record.vcpuEntry(oldVcpu) + VCPU_ENTRY.at.tails) / 4 + oldPriority;
  if (u32[oldTail] === port) u32[oldTail] = 0;
  u16[(portAt + PORT.at.linkedVcpu) / 2] = vcpuId;
  u8[portAt + PORT.at.linkedPriority] = priority;
}

/** @returns false when the guest has already taken `tail` out of the queue */
function appendTo(record: DomainRecord, tail: number, port: number): boolean {
  const { u32 } = record.memory;
  const word = fifoWord(record, tail);
  for (let attempt = 0; attempt < LINK_ATTEMPTS; attempt++) {
    const before = Atomics.load(u32, word);
    if ((before & EVTCHN_FIFO_LINKED) === 0) return false;
    const after = ((before & ~EVTCHN_FIFO_LINK_MASK) | port) >>> 0;
    if (Atomics.compareExchange(u32, word, before, after) === before) return true;
  }
  return false;
}
