// What a CPU gets of stage 2 when others change it at the same time.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { forgetFrame } from '../cpu/tlb-requests.ts';
import type { TlbRequest } from '../cpu/tlb-requests.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import { DomainCpuHost } from './cpu-host.ts';
import type { CpuHostParts } from './cpu-host.ts';

const [OLD, COPY, LATER] = [10, 11, 12];

for (const vcpus of [1, 2]) {
  test(`a frame that was taken away while others were waited for is not handed out (${vcpus} vCPUs)`, () => {
    const forgotten: number[] = [];
    let frame = OLD;
    // As P2m: the first write copies, and has to be told to all. Meanwhile another thread puts another frame there.
    const p2m = {
      stale: false,
      onlyStaleFrame: OLD,
      frameForWrite: () => {
        if (frame !== OLD) return frame;
        p2m.stale = true;
        return frame = COPY;
      },
      releaseStale: () => {
        p2m.stale = false;
        frame = LATER;
      },
    };
    const asked: TlbRequest[] = [];
    const host = new DomainCpuHost({
      environment: { p2m, stage2: { flush: () => assert.fail('only what leads to the frame has to go') } },
      gic: { domidOf: () => 1, vcpuCount: () => vcpus },
      hypercalls: { domains: { record: () => ({ get: () => 1 }) } },
      flushOthers: (_domid: number, _vcpu: VcpuState, request: TlbRequest) => { asked.push(request); },
      forgetFrame: (_vcpu: VcpuState, mfn: number) => { forgotten.push(mfn); },
    } as unknown as CpuHostParts);
    assert.equal(host.frameForWrite({ address: 0 } as VcpuState, 5), LATER);
    assert.deepEqual(forgotten, [OLD], 'this thread goes on in the copy if it runs the page');
    assert.deepEqual(asked, vcpus > 1 ? [forgetFrame(OLD)] : [], 'a vCPU that is alone has nobody to wait for');
  });
}
