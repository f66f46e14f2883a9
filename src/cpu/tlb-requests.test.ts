// What a vCPU makes of requests to forget translations, in whatever order and number they come.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { TLB_REQUESTS, VCPU_BYTES, tlbCoverage, tlbCoverageOffset, vcpuRecord } from '../abi/vcpu.ts';
import {
  ANY_ASID, FORGET_EVERYTHING, FORGET_STAGE_ONE, forgetAddress, forgetAsid, forgetFrame, isObeyed, mustHear, obeyTlbRequests,
  postTlbRequest,
} from './tlb-requests.ts';

const at = vcpuRecord.at;
const VCPU = VCPU_BYTES;

function rig() {
  const buffer = new SharedArrayBuffer(2 * VCPU_BYTES);
  const views = { u32: new Uint32Array(buffer), u64: new BigUint64Array(buffer) };
  const heard: string[] = [];
  const forget = {
    everything: () => heard.push('everything'), allTlbs: () => heard.push('allTlbs'), asid: (asid: number) => heard.push(`asid ${asid}`),
    address: (low: number, high: number) => heard.push(`address ${(high >>> 0).toString(16)}:${(low >>> 0).toString(16)}`),
    frame: (mfn: number) => heard.push(`frame ${mfn}`),
  };
  const set = (offset: number, value: number): void => { views.u32[(VCPU + offset) / 4] = value; };
  return {
    views, set,
    post: (request: number) => postTlbRequest(views, VCPU, request),
    obey: (): string[] => {
      heard.length = 0;
      obeyTlbRequests(views, VCPU, forget);
      return [...heard];
    },
    setCoverage: (field: 'asid' | 'globalInLowerHalf', value: number) => set(tlbCoverageOffset + tlbCoverage.at[field], value),
  };
}

const kinds = fc.oneof(
  fc.constant([FORGET_EVERYTHING, 'everything'] as const),
  fc.constant([FORGET_STAGE_ONE, 'allTlbs'] as const),
  fc.nat(0xffff).map(asid => [forgetAsid(asid), `asid ${asid}`] as const),
  fc.nat(0xffff_ffff).map(mfn => [forgetFrame(mfn), `frame ${mfn}`] as const),
  fc.record({ upper: fc.boolean(), high: fc.nat(0x7fff), low: fc.nat(0xffff_ffff) }).map(({ upper, high, low }) => {
    const extended = upper ? high | 0xffff_8000 : high;
    return [forgetAddress(low, extended), `address ${(extended >>> 0).toString(16)}:${((low & ~0xfff) >>> 0).toString(16)}`] as const;
  }),
);

test('requests are obeyed one by one, and all of them as one when there were more than the ring holds', () => {
  fc.assert(fc.property(fc.array(fc.array(kinds, { maxLength: TLB_REQUESTS + 4 }), { maxLength: 12 }), fc.nat(0xffff_ffff), (rounds, start) => {
    const { views, set, post, obey } = rig();
    // Whatever number comes next, at the end of the numbers too.
    for (const field of [at.tlbFlushRequest, at.tlbFlushDone]) set(field, start > 0x8000_0000 ? 2 ** 32 - (start % 40) : start);
    for (const round of rounds) {
      const numbers = round.map(([request]) => post(request));
      assert.equal(numbers.some(number => isObeyed(views, VCPU, number)), false);
      assert.deepEqual(obey(), round.length > TLB_REQUESTS ? ['everything'] : round.map(([, heard]) => heard));
      assert.ok(numbers.every(number => isObeyed(views, VCPU, number)));
      assert.deepEqual(obey(), []);
    }
  }));
});

test('a request whose word is not there yet makes everything go', () => {
  const { views, post, obey } = rig();
  post(forgetAsid(1));
  Atomics.add(views.u32, (VCPU + at.tlbFlushRequest) / 4, 1);
  post(forgetAsid(2));
  assert.deepEqual(obey(), ['everything']);
  // One that is written only now is in the place of one that comes sixteen later, which is not mistaken for it.
  for (let i = 0; i < TLB_REQUESTS - 1; i++) post(forgetAsid(3));
  assert.deepEqual(obey().at(-1), 'asid 3');
  const place = (VCPU + tlbCoverageOffset + tlbCoverage.at.requests) / 8;
  const late = views.u64[place + 1]!;
  post(forgetAsid(4));
  const number = views.u32[(VCPU + at.tlbFlushRequest) / 4]!;
  views.u64[place + number % TLB_REQUESTS] = late;
  assert.deepEqual(obey(), ['everything']);
});

test('who has no entry of an address space need not hear of it', () => {
  const { views, setCoverage } = rig();
  const hears = (request: number, asid: number): boolean => mustHear(views, VCPU, request, asid);
  const [lower, upper] = [forgetAddress(0x1000, 0x7fff), forgetAddress(0x1000, 0xffff_8000)];
  setCoverage('asid', 5);
  for (const request of [lower, upper, forgetAsid(5)]) assert.equal(hears(request, 5), true);
  assert.deepEqual([lower, upper, forgetAsid(6)].map(request => hears(request, 6)), [false, true, false]);
  setCoverage('globalInLowerHalf', 1);
  assert.deepEqual([lower, forgetAsid(6)].map(request => hears(request, 6)), [true, false], 'global entries go by address only');
  setCoverage('globalInLowerHalf', 0);
  for (const request of [lower, upper, FORGET_STAGE_ONE, FORGET_EVERYTHING, forgetFrame(9)]) assert.equal(hears(request, ANY_ASID), true);
});
