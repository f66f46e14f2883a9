// What other threads want a vCPU to forget of its translations. Requests are numbered: how many there were is in the
// vCPU record (`tlbFlushRequest`), and how many of them have been obeyed (`tlbFlushDone`). What the latest ask for is in a
// ring behind the TLBs:
//
//                                       63         38 37  36 35           0
//   request n   tlbRequests[n mod 16] = │ n mod 2^26 │ kind │ of what     │   written as a whole
//
// Whoever obeys and does not find a request there, because it is just being written or has been overwritten, forgets
// everything: no request asks for more.
//
// Most requests of a guest are about one address space, for Linux tells all vCPUs of each page that changes. A vCPU has
// entries of one address space only, and of all; which one is in its record, so that who asks sees whether there is
// anything to forget. A vCPU that comes to that address space later walks its tables as they are by then: it says so
// before it reads them, and whoever asks has changed them before he looks.

import { TLB_REQUESTS, tlbCoverage, tlbCoverageOffset, vcpuRecord } from '../abi/vcpu.ts';
import { assert } from '../base/assert.ts';

const at = vcpuRecord.at;
const coverage = (field: keyof typeof tlbCoverage.at): number => tlbCoverageOffset + tlbCoverage.at[field];

const KIND_SHIFT = 2 ** 36;
const NUMBER_SHIFT = 38n;
const REQUEST_MASK = (1n << NUMBER_SHIFT) - 1n;
const NUMBER_MASK = 2 ** 26 - 1;
const KIND = { everything: 0, address: 1, space: 2, frame: 3 } as const;
/** Page numbers from here on are of the upper half. */
const UPPER_HALF = 2 ** 35;
const ALL_SPACES = 2 ** 16;
/** For `mustHear`: entries of every address space are meant. */
export const ANY_ASID = -1;

/** A kind, and of what, as one number. */
export type TlbRequest = number;

/** All TLBs, and what is known of stage 2. */
export const FORGET_EVERYTHING: TlbRequest = KIND.everything;
/** All TLBs. */
export const FORGET_STAGE_ONE: TlbRequest = KIND.space * KIND_SHIFT + ALL_SPACES;
/** The entries of an address, in whatever address space. */
export function forgetAddress(low: number, high: number): TlbRequest {
  return KIND.address * KIND_SHIFT + (high & 0xffff) * 0x10_0000 + (low >>> 12);
}
/** The entries of an address space that are not global. */
export function forgetAsid(asid: number): TlbRequest {
  return KIND.space * KIND_SHIFT + asid;
}
/** What leads to a machine frame; there is no write entry for it. */
export function forgetFrame(mfn: number): TlbRequest {
  return KIND.frame * KIND_SHIFT + mfn;
}

export interface TlbRequestViews {
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
}

/** Any thread. @returns the request's number, for `isObeyed` */
export function postTlbRequest({ u32, u64 }: TlbRequestViews, vcpuAddress: number, request: TlbRequest): number {
  const number = (Atomics.add(u32, (vcpuAddress + at.tlbFlushRequest) / 4, 1) + 1) >>> 0;
  Atomics.store(u64, ringIndex(vcpuAddress, number), (BigInt(number & NUMBER_MASK) << NUMBER_SHIFT) | BigInt(request));
  return number;
}
function ringIndex(vcpuAddress: number, number: number): number {
  return (vcpuAddress + coverage('requests')) / 8 + number % TLB_REQUESTS;
}

export function isObeyed({ u32 }: TlbRequestViews, vcpuAddress: number, number: number): boolean {
  return ((Atomics.load(u32, (vcpuAddress + at.tlbFlushDone) / 4) - number) | 0) >= 0;
}

/**
 * Whether the vCPU can have an entry that is meant.
 * @param asid whose entries are meant, beside global ones; ANY_ASID: all
 */
export function mustHear({ u32 }: TlbRequestViews, vcpuAddress: number, request: TlbRequest, asid: number): boolean {
  const kind = Math.floor(request / KIND_SHIFT);
  if (asid === ANY_ASID || kind !== KIND.address && kind !== KIND.space) return true;
  if (Atomics.load(u32, (vcpuAddress + coverage('asid')) / 4) === asid) return true;
  if (kind === KIND.space) return false;
  return request % KIND_SHIFT >= UPPER_HALF || Atomics.load(u32, (vcpuAddress + coverage('globalInLowerHalf')) / 4) !== 0;
}

/** How a vCPU forgets. */
export interface TlbForgetting {
  everything(): void;
  allTlbs(): void;
  /** If it is the current one. */
  asid(asid: number): void;
  address(low: number, high: number): void;
  frame(mfn: number): void;
}

/** By the thread that runs the vCPU. @returns whether there was anything to obey */
export function obeyTlbRequests(views: TlbRequestViews, vcpuAddress: number, forget: TlbForgetting): boolean {
  const { u32, u64 } = views;
  const latest = Atomics.load(u32, (vcpuAddress + at.tlbFlushRequest) / 4);
  const done = u32[(vcpuAddress + at.tlbFlushDone) / 4]!;
  if (latest === done) return false;
  const count = (latest - done) >>> 0;
  const requests: TlbRequest[] = [];
  for (let i = 1; i <= Math.min(count, TLB_REQUESTS); i++) {
    const number = (done + i) >>> 0;
    const word = Atomics.load(u64, ringIndex(vcpuAddress, number));
    if (Number(word >> NUMBER_SHIFT) === (number & NUMBER_MASK)) requests.push(Number(word & REQUEST_MASK));
  }
  if (requests.length < count) forget.everything();
  else for (const request of requests) obey(request, forget);
  Atomics.store(u32, (vcpuAddress + at.tlbFlushDone) / 4, latest);
  return true;
}

function obey(request: TlbRequest, forget: TlbForgetting): void {
  const what = request % KIND_SHIFT;
  switch (Math.floor(request / KIND_SHIFT)) {
    case KIND.everything: return forget.everything();
    case KIND.frame: return forget.frame(what);
    case KIND.space: return what === ALL_SPACES ? forget.allTlbs() : forget.asid(what);
    default: {
      const high = Math.floor(what / 0x10_0000);
      return forget.address((what % 0x10_0000) << 12, what >= UPPER_HALF ? high | 0xffff_0000 : high);
    }
  }
}
assert(2 ** 32 % TLB_REQUESTS === 0, 'numbers of requests wrap round in the middle of the ring');
