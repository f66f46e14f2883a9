// A guest that means harm to the back end of its disk, over real grant tables and frames: random requests and grants, entries
// that are taken back or granted twice while a request uses them, a guest that is destroyed in the middle. What it may spoil
// is its own memory and disk; afterwards every frame is accounted for. ZAZEN_FUZZ_ROUNDS makes it longer.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { BLKIF_OP, blkifRequest, blkifRequestIndirect, blkifSegment } from '../../src/abi/xen-block.ts';
import { GNTTABOP, GTF_PERMIT_ACCESS, GTF_READONLY, grantEntryV1, gnttabSetupTable } from '../../src/abi/xen-grant-table.ts';
import { DOMAIN } from '../../src/abi/domain-record.ts';
import { DOMID_SELF, HYPERVISOR } from '../../src/abi/xen.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { BlockBackend } from '../../src/devices/block/backend.ts';
import type { BlockMedium } from '../../src/devices/block/backend.ts';
import { bytesOf } from '../../src/lanes/pieces.ts';
import type { Pieces } from '../../src/lanes/pieces.ts';
import type { GrantMapping } from '../../src/hypervisor/grant-table.ts';
import { RAM_GFN, RAM_PAGES, TestMachine, page } from '../../src/hypervisor/test-domain.ts';
import type { TestGuest } from '../../src/hypervisor/test-domain.ts';

const ROUNDS = Number(process.env['ZAZEN_FUZZ_ROUNDS'] ?? 300);
const RING_REF = 8;
const RING_PAGE = 5;
const DISK_BYTES = 2 ** 20;

/** Writes to the frames that it is given some turns later, as a disk does. */
class SlowDisk implements BlockMedium {
  readonly sizeBytes = DISK_BYTES;
  readonly isReadOnly = false;
  readonly canDiscard = true;
  readonly #machine: TestMachine;
  readonly #random: SeededRandom;
  constructor(machine: TestMachine, random: SeededRandom) {
    this.#machine = machine;
    this.#random = random;
  }
  async #wait(): Promise<void> {
    for (let turns = this.#random.below(4); turns > 0; turns--) await turn();
    if (this.#random.below(20) === 0) throw Object.assign(new Error('the disk is broken'), { code: 'EIO' });
  }
  #check(pieces: Pieces, offset: number): void {
    assert.ok(offset >= 0 && offset + bytesOf(pieces) <= DISK_BYTES);
    for (const piece of pieces) {
      assert.equal(piece.buffer, this.#machine.memory.u8.buffer);
      assert.ok(piece.byteOffset >= this.#machine.memory.firstFrame * 4096, 'frames of guests only');
    }
  }
  async read(pieces: Pieces, offset: number): Promise<void> {
    this.#check(pieces, offset);
    await this.#wait();
    for (const piece of pieces) piece.fill(0xd1);
  }
  async write(pieces: Pieces, offset: number): Promise<void> {
    this.#check(pieces, offset);
    await this.#wait();
    bytesOf(pieces);
  }
  async flush(): Promise<void> {
    await this.#wait();
  }
  async discard(offset: number, sizeBytes: number): Promise<void> {
    assert.ok(offset >= 0 && sizeBytes > 0 && offset + sizeBytes <= DISK_BYTES);
    await this.#wait();
  }
}

class HostileGuest {
  readonly machine = new TestMachine();
  readonly guest: TestGuest = this.machine.createGuest();
  readonly backend: BlockBackend;
  readonly #random: SeededRandom;
  #produced = 0;

  constructor(random: SeededRandom, isPersistent: boolean) {
    this.#random = random;
    const { machine, guest } = this;
    const { domid } = guest;
    const { grants } = machine.hypercalls;
    const setup = guest.op(HYPERVISOR.grant_table_op, GNTTABOP.setup_table, gnttabSetupTable, { dom: DOMID_SELF, nr_frames: 1, frame_list: BigInt(page(9)) * 4096n });
    assert.equal(setup.result, 0);
    this.grant(RING_REF, page(RING_PAGE), 0);
    this.backend = new BlockBackend({
      disk: new SlowDisk(machine, random),
      guest: {
        memory: machine.memory.u8, map: (ref, write) => grants.map(domid, ref, write),
        unmap: (mapped) => grants.unmap(mapped as GrantMapping), notify: () => {},
      },
    });
    assert.ok(this.backend.connect({ ringRefs: [RING_REF], isPersistent, position: 0 }));
  }

  /** Writes an entry of the table, whatever uses it. */
  grant(ref: number, gfn: number, flags: number): void {
    const { made } = this.guest;
    const mfn = this.machine.memory.u32[(made.domain.address + DOMAIN.at.grants) / 4]!;
    const at = mfn * 4096 + ref * grantEntryV1.sizeBytes;
    this.machine.memory.u16[at / 2] = flags === 0 ? GTF_PERMIT_ACCESS : flags;
    this.machine.memory.u16[at / 2 + 1] = 0;
    this.machine.memory.u32[at / 4 + 1] = gfn;
  }

  #word(gfn: number, offset: number, value: number): void {
    this.machine.memory.u32[this.guest.word(gfn, offset)] = value >>> 0;
  }

  step(): void {
    const random = this.#random;
    switch (random.below(10)) {
      case 0: return this.grant(random.below(40), random.pick([page(20 + random.below(30)), RAM_GFN + RAM_PAGES + 5, 0xffff_ffff, page(RING_PAGE)]), random.pick([0, 0, GTF_PERMIT_ACCESS | GTF_READONLY, 2, 3]));
      case 1: return this.#word(page(RING_PAGE), 0, random.pick([random.u32(), this.#produced, this.#produced + 33]));
      case 2: return this.#word(page(11), 8 * random.below(512), random.below(40));
      case 3: return this.backend.service();
      default: return this.#request();
    }
  }

  #request(): void {
    const random = this.#random;
    const slot = new Uint8Array(blkifRequest.sizeBytes);
    const view = new DataView(slot.buffer);
    slot[0] = random.pick([BLKIF_OP.read, BLKIF_OP.write, BLKIF_OP.flush_diskcache, BLKIF_OP.write_barrier, BLKIF_OP.discard, BLKIF_OP.indirect, random.below(256)]);
    slot[1] = random.pick([1, 2, 11, 12, 255, 0]);
    view.setUint32(16, random.pick([random.below(2048), 2047, random.u32()]), true);
    view.setUint32(20, random.pick([0, 0, 0, random.u32()]), true);
    for (let i = 0; i < 11; i++) {
      const at = blkifRequest.at.seg + i * blkifSegment.sizeBytes;
      view.setUint32(at, random.pick([random.below(40), random.below(40), RING_REF, random.u32()]), true);
      slot[at + 4] = random.below(9);
      slot[at + 5] = random.pick([random.below(8), 7, 255]);
    }
    if (slot[0] === BLKIF_OP.indirect) {
      slot[1] = random.below(3);
      view.setUint16(blkifRequestIndirect.at.nr_segments, random.pick([1, 20, 256, 257, 65535]), true);
      view.setUint32(blkifRequestIndirect.at.indirect_grefs, random.below(40), true);
    }
    const at = 64 + (this.#produced % 32) * blkifRequest.sizeBytes;
    for (let i = 0; i < slot.length; i += 4) this.#word(page(RING_PAGE), at + i, view.getUint32(i, true));
    this.#produced = (this.#produced + 1) >>> 0;
    this.#word(page(RING_PAGE), 0, this.#produced);
  }

  async end(isDestroyedFirst: boolean): Promise<void> {
    if (isDestroyedFirst) this.machine.destroy(this.guest);
    this.backend.disconnect();
    await this.backend.pause();
    this.machine.heap.tearDown.finish();
    this.machine.audit();
  }
}

for (const isPersistent of [false, true]) {
  for (const isDestroyedFirst of [false, true]) {
    const how = `${isPersistent ? ', persistent grants' : ''}${isDestroyedFirst ? ', destroyed in the middle' : ''}`;
    test(`random rings and grants${how}`, async () => {
      for (let seed = 1; seed <= Math.ceil(ROUNDS / 100); seed++) {
        const hostile = new HostileGuest(new SeededRandom(seed), isPersistent);
        for (let round = 0; round < 100; round++) {
          for (let i = 0; i < 20; i++) hostile.step();
          hostile.backend.service();
          await turn();
        }
        await hostile.end(isDestroyedFirst);
      }
    });
  }
}

test('a checkpoint\'s pause ends whatever a guest has begun', async () => {
  const hostile = new HostileGuest(new SeededRandom(99), true);
  for (let round = 0; round < 50; round++) {
    for (let i = 0; i < 20; i++) hostile.step();
    hostile.backend.service();
    await hostile.backend.pause();
    hostile.backend.letGo();
    assert.equal(hostile.machine.hypercalls.grants.usesOf(hostile.guest.made.domain), 0);
    // Sometimes the ring is only granted again when the disk goes on already.
    if (round % 2 === 0) hostile.grant(RING_REF, page(RING_PAGE), 0);
    hostile.backend.resume();
    hostile.grant(RING_REF, page(RING_PAGE), 0);
    hostile.backend.service();
  }
  await hostile.end(false);
});
