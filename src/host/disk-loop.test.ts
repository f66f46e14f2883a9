import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { BLKIF_OP, blkifSring } from '../abi/xen-block.ts';
import { systemClock } from '../base/clock.ts';
import { VirtioMmio } from '../devices/virtio/registers.ts';
import { HypervisorThread } from '../hypervisor/thread.ts';
import { HostLane, LANE_STATE, LaneTable } from '../lanes/lane.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { serveLanes } from './disk-loop.ts';

test('a pCPU looks at a ring that its guest tells of, unless another vCPU waits for it', () => {
  const machine = MachineMemory.create({ sizeBytes: 256 * 2 ** 20, pcpuCount: 1, addressType: 'i32' });
  Heap.initialize(machine);
  const thread = new HypervisorThread(machine, 0, systemClock);
  const table = new LaneTable();
  serveLanes(thread, table.buffer, new VirtioMmio());
  const { serveLane } = thread.hypercalls.channels;
  // A ring with a flush in it, which is none of its business: it gives the ring back.
  const mfn = thread.heap.allocate(0);
  machine.u32[(mfn * FRAME_BYTES + blkifSring.at.req_prod) / 4] = 1;
  machine.u8[mfn * FRAME_BYTES + blkifSring.sizeBytes] = BLKIF_OP.flush_diskcache;
  table.open(5, { domid: 1, port: 1 });
  const lane = new HostLane(table, 5, { canTake: () => true, take: () => {}, takeBack: () => {}, closed: () => {} });
  lane.lend({ ringMfns: [mfn], position: 0, resets: 0, fd: -1, chain: 0, isOwn: true, isVolatile: false, alignBytes: 1, sizeBytes: 4096, isReadOnly: false, isLocal: true }, () => {});
  const head = thread.scheduling.word('head');
  machine.u32[head] = 1;
  assert.ok(!serveLane!(5));
  assert.equal(table.get(5, 'state'), LANE_STATE.served);
  machine.u32[head] = 0;
  assert.ok(serveLane!(5));
  assert.equal(table.get(5, 'state'), LANE_STATE.free);
  assert.equal(lane.position, 0, 'the flush is still there');
  assert.ok(!serveLane!(5), 'and the ring is the host\'s');
});
