// A guest that means harm to the back end of its network card: it has real grants, rings and event channels, and stores
// nonsense into its grant table, the rings' indices and slots, and the frames, as fast as it can, while the host's
// thread works on them; it is checkpointed, rolled back, forked and destroyed in the middle of that. What it may spoil
// is its own memory. Seeds are in the tests' names; ZAZEN_FUZZ_ROUNDS makes them longer.
//
//   DATA            rows of address, value, what to do         DATA + FRAMES   pages with good frames, as sent at first
//   DATA + RINGS    tx ring, rx ring                           grant N < 32    of data page N; 40, 41: the rings

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { EVTCHNOP, evtchnAllocUnbound } from '../../src/abi/xen-event-channel.ts';
import { GTF_PERMIT_ACCESS, GTF_READONLY, grantEntryV1 } from '../../src/abi/xen-grant-table.ts';
import { XENMAPSPACE, XENMEM, xenAddToPhysmap } from '../../src/abi/xen-memory.ts';
import { NETIF_RING_SLOTS, NETTXF, netifRxRequest, netifSring, netifTxRequest } from '../../src/abi/xen-net.ts';
import { DOMID_SELF, GUEST_GNTTAB_BASE, SCHEDOP } from '../../src/abi/xen.ts';
import { SeededRandom } from '../../src/base/random.ts';
import type { Domain } from '../../src/host/index.ts';
import { DATA, FREE, MEMORY, forEachRow, forever, hypercall } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

let arena: Arena;
before(async () => { arena = await Arena.open(); });
after(() => arena.close());

const ROUNDS = Number(process.env['ZAZEN_FUZZ_ROUNDS'] ?? 3);
const ROW_BYTES = 16;
const ROWS = 4000;
const FRAMES = 0x2_0000;
const FRAME_PAGES = 32;
const RINGS = FRAMES + FRAME_PAGES * 4096;
const TX_REF = 40;
const RX_REF = 41;
const TX_RING = DATA + RINGS;
const RX_RING = TX_RING + 4096;
/** The first that a guest allocates, after those of store and console. */
const PORT = 3;
/** `produce`: so many requests more than there are responses. */
const DO = { store: 0, produce: 1, tell: 2, giveWay: 3 } as const;
const { at } = netifSring;

const pageAt = (address: number): number => address / 4096;
const frameAt = (page: number): number => DATA + FRAMES + page * 4096;
const grantAt = (ref: number): number => GUEST_GNTTAB_BASE + ref * grantEntryV1.sizeBytes;

/** ARP for the gateway, a ping of it, DHCP of sorts, and a SYN: what has an answer. */
function goodFrame(page: number): Buffer {
  const frame = Buffer.alloc(342);
  const gateway = Buffer.from('525a0a000202', 'hex');
  frame.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x16, 0x3e, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x00, 0x16, 0x3e, 0, 0, 9, 10, 0, 2, 15]);
  frame.set([10, 0, 2, 2], 38);
  if (page % 4 === 0) return frame;
  frame.fill(0, 14);
  if (page % 4 !== 2) frame.set(gateway);
  frame.set([8, 0, 0x45, 0, 1, 0x48, 0, 0, 0, 0, 64, [0, 1, 17, 6][page % 4]!, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2], 12);
  let sum = 0;
  for (let i = 14; i < 34; i += 2) sum += frame.readUInt16BE(i);
  frame.writeUInt16BE(~(sum + Math.floor(sum / 65536)) & 0xffff, 24);
  frame.set(page % 4 === 1 ? [8, 0, 0xf7, 0xff] : page % 4 === 2 ? [0, 68, 0, 67, 1, 0x34] : [4, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255], 34);
  return frame;
}

/** Address, value, what to do. */
type Row = [number, number, number];

/**
 * @param overlaps the rings are also granted for data, and other pages as rings: what is received then overwrites the
 * indices, and the guest loses its place for good
 */
function nonsense(dice: SeededRandom, overlaps: boolean): Uint8Array {
  const ringRef = overlaps ? RX_REF : 0;
  const ringPage = overlaps ? TX_RING : FREE;
  const data = Buffer.alloc(RINGS + 2 * 4096);
  for (let page = 0; page < FRAME_PAGES; page++) data.set(goodFrame(page), FRAMES + page * 4096);
  const txSlot = (slot: number, word: number): number => TX_RING + netifSring.sizeBytes + slot * netifTxRequest.sizeBytes + 4 * word;
  const rxSlot = (slot: number, word: number): number => RX_RING + netifSring.sizeBytes + slot * netifRxRequest.sizeBytes + 4 * word;
  const size = (): number => dice.pick([342, 342, 342, 60, 14, 1514, 4096, dice.below(65536)]);
  const flags = (): number => dice.pick([0, 0, 0, NETTXF.csum_blank, NETTXF.more_data, NETTXF.extra_info, dice.below(65536)]);
  // What makes all well again: grants, and slots of good frames. Of the rings first: without them nothing is looked at.
  const repairs: Row[] = Array.from({ length: FRAME_PAGES }, (_, page) => [
    [grantAt(page), GTF_PERMIT_ACCESS, DO.store], [grantAt(page) + 4, pageAt(frameAt(page)), DO.store]] as Row[]).flat();
  const ringRepairs = ([[TX_REF, TX_RING], [RX_REF, RX_RING]] as const).flatMap(([ref, ring]): Row[] =>
    [[grantAt(ref), GTF_PERMIT_ACCESS, DO.store], [grantAt(ref) + 4, pageAt(ring), DO.store]]);
  for (let slot = 0; slot < NETIF_RING_SLOTS; slot++) {
    repairs.push([txSlot(slot, 0), slot % FRAME_PAGES, DO.store], [txSlot(slot, 1), 0, DO.store], [txSlot(slot, 2), slot | (342 << 16), DO.store],
      [rxSlot(slot, 0), slot, DO.store], [rxSlot(slot, 1), slot % FRAME_PAGES, DO.store]);
  }
  const rows: (() => Row)[] = [
    () => [txSlot(dice.below(NETIF_RING_SLOTS), 0), dice.pick([dice.below(FRAME_PAGES), dice.below(FRAME_PAGES), TX_REF, dice.u32()]), DO.store],
    () => [txSlot(dice.below(NETIF_RING_SLOTS), 1), dice.pick([0, 0, dice.below(4096)]) | (flags() << 16), DO.store],
    () => [txSlot(dice.below(NETIF_RING_SLOTS), 2), dice.below(65536) | (size() << 16), DO.store],
    () => [rxSlot(dice.below(NETIF_RING_SLOTS), 0), dice.below(256), DO.store],
    () => [rxSlot(dice.below(NETIF_RING_SLOTS), 1), dice.pick([dice.below(FRAME_PAGES), dice.below(FRAME_PAGES), ringRef, dice.u32()]), DO.store],
    () => [TX_RING, dice.below(8), DO.produce],
    () => [dice.pick([TX_RING, RX_RING]), dice.pick([dice.below(8), NETIF_RING_SLOTS, dice.below(300)]), DO.produce],
    () => [dice.pick([TX_RING, RX_RING]) + dice.pick([at.req_prod, at.req_event, at.rsp_event]),
      dice.pick([dice.u32(), dice.below(300), 0xffff_fff0]), DO.store],
    // Grants, of the rings as well: given, taken back, made read-only or somebody else's, of pages that are not there.
    () => [grantAt(dice.pick([dice.below(48), dice.below(FRAME_PAGES)])),
      dice.pick([GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS, GTF_PERMIT_ACCESS | GTF_READONLY, 0, 3, dice.u32(), GTF_PERMIT_ACCESS | (7 << 16)]), DO.store],
    () => [grantAt(dice.below(overlaps ? 48 : TX_REF)) + grantEntryV1.at.frame,
      dice.pick([pageAt(frameAt(dice.below(FRAME_PAGES))), pageAt(ringPage), pageAt(GUEST_GNTTAB_BASE), pageAt(FREE) + dice.below(64), dice.u32()]), DO.store],
    // The first four kinds of frames stay good, so that there is something to answer.
    () => [frameAt(4 + dice.below(FRAME_PAGES - 4)) + 4 * dice.below(24), dice.u32(), DO.store],
    () => [0, 0, DO.tell],
    ...Array.from({ length: 4 }, () => () => dice.pick(repairs)),
    ...Array.from({ length: 2 }, () => () => dice.pick(ringRepairs)),
    () => [0, 0, DO.giveWay],
  ];
  for (let row = 0; row < ROWS; row++) {
    const [address, value, what] = dice.pick(rows)();
    [address, 0, value, what].forEach((word, i) => data.writeUInt32LE(word >>> 0, row * ROW_BYTES + 4 * i));
  }
  assert(ROWS * ROW_BYTES <= FRAMES);
  return data;
}

function attack(a: Assembler): void {
  const map = xenAddToPhysmap.at;
  a.mov(1, FREE).mov(2, DOMID_SELF).str(2, 1, map.domid, 'H').mov(2, XENMAPSPACE.grant_table).str(2, 1, map.space, 'W');
  a.str(31, 1, map.idx).mov(2, pageAt(GUEST_GNTTAB_BASE)).str(2, 1, map.gpfn).mov(0, XENMEM.add_to_physmap);
  hypercall(a, 'memory_op');
  const port = evtchnAllocUnbound.at;
  a.mov(1, FREE).mov(2, DOMID_SELF).str(2, 1, port.dom, 'H').str(31, 1, port.remote_dom, 'H').mov(0, EVTCHNOP.alloc_unbound);
  hypercall(a, 'event_channel_op');
  forever(a, () => forEachRow(a, ROWS, ROW_BYTES, () => {
    a.ldr(1, 20).ldr(2, 20, 8, 'W').ldr(3, 20, 12, 'W').cbz(3, 'store');
    a.sub(3, 3, 1).cbz(3, 'produce').sub(3, 3, 1).cbz(3, 'tell');
    a.mov(0, SCHEDOP.yield);
    hypercall(a, 'sched_op');
    a.b('done').label('tell').mov(1, FREE).mov(2, PORT).str(2, 1, 0, 'W').mov(0, EVTCHNOP.send);
    hypercall(a, 'event_channel_op');
    a.b('done').label('produce').ldr(4, 1, at.rsp_prod, 'W').addReg(2, 2, 4).str(2, 1, at.req_prod, 'W').b('done');
    a.label('store').str(2, 1, 0, 'W').label('done');
  }));
}

/** What a driver would write; the card is connected then. */
function connect(guest: Domain): void {
  const front = `/local/domain/${guest.id}/device/vif/0`;
  const entries = {
    'tx-ring-ref': TX_REF, 'rx-ring-ref': RX_REF, 'event-channel': PORT, 'request-rx-copy': 1, 'feature-sg': 1,
    'feature-gso-tcpv4': 1, 'feature-rx-notify': 1, 'state': 4,
  };
  for (const [name, value] of Object.entries(entries)) arena.host.store.write(`${front}/${name}`, String(value));
}

for (const [seed, overlaps] of [[51, false], [52, true]] as const) {
  test(`a card whose rings, grants and frames are nonsense${overlaps ? ' and lie over each other' : ''}, seed ${seed}`, async () => {
    const guest = await arena.start({ data: nonsense(new SeededRandom(seed), overlaps), code: attack }, {
      memory: MEMORY, nics: [{ mac: `00:16:3e:00:00:09`, network: `hostile${seed}`, address: '10.0.2.15' }],
    });
    const card = () => guest.stats().nics[0]!;
    const runs = (instructions: number) => {
      const end = guest.stats().instructionsRetired + instructions;
      return until('the guest has gone on', () => guest.state !== 'running' || guest.stats().instructionsRetired >= end);
    };
    await until('its rings could be used when it was looked', () => {
      connect(guest);
      return card().isConnected;
    });
    await until('frames have gone both ways', () => overlaps || card().txFrames > 20 && card().rxFrames > 20 && card().txErrors > 0);
    for (let round = 0; round < ROUNDS; round++) {
      const checkpoint = await guest.checkpoint();
      await runs(500_000);
      const [fork] = await checkpoint.fork() as [Domain];
      await guest.rollback(checkpoint);
      assert.equal(guest.state, 'running');
      await runs(500_000);
      await arena.survive(fork);
      await checkpoint.destroy();
    }
    const { txFrames } = card();
    await until('it is served to the end', () => overlaps || card().txFrames > txFrames);
    await arena.survive(guest);
    const metrics = arena.host.stats().networks[`hostile${seed}`]!;
    assert.deepEqual([metrics.ports.length, metrics.tcp.connections, metrics.udp.flows], [0, 0, 0]);
  });
}
