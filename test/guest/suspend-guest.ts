// A guest without an operating system that suspends itself when it is asked, as docs/suspend.md has it: over its suspend
// event channel, and over the store by way of a real ring. It tells in the store what came of it.
//
//   DATA ┌──────────┐            FREE ┌───────────────┐
//        │ messages │ to the store    │ scratch       │ arguments of hypercalls
//        └──────────┘            +4K  │ answer        │ header and payload of the latest message from the store
//                                +8K  │ shared info   │ mapped over the RAM that was there
//                                     └───────────────┘
//
//   x19 the store's page   x20 FREE   x21 how often it went on   x22 events not yet looked at   x23 a watch has fired
//
// data/resumed: what SCHEDOP_shutdown answered, as a digit, and a letter that counts: "1a", "1b", "0c" …

import type { Assembler } from '../../src/a64/test-assembler.ts';
import { EVTCHNOP, evtchnAllocUnbound, evtchnPort } from '../../src/abi/xen-event-channel.ts';
import { XENMAPSPACE, XENMEM, xenAddToPhysmap } from '../../src/abi/xen-memory.ts';
import { sharedInfo } from '../../src/abi/xen-shared-info.ts';
import { DOMID_SELF, GUEST_XENSTORE_GFN, SCHEDOP, SHUTDOWN, schedPoll } from '../../src/abi/xen.ts';
import { XENSTORE_DOMAIN_INTERFACE, XENSTORE_RING_SIZE, XS_TYPE } from '../../src/abi/xenstore-wire.ts';
import { DATA, FREE, bareMetalImage, fresh, hypercall, powerOff } from '../bare-metal.ts';

export interface SuspendGuest {
  /** Advertises a suspend event channel; default true. */
  readonly channel?: boolean;
  /** Watches control/shutdown, and says so; default true. */
  readonly store?: boolean;
  /** When asked: `late` waits until `data/go` is in the store; `never` goes on; `crash` stops for another reason. */
  readonly answer?: 'at-once' | 'late' | 'never' | 'crash' | 'late-crash';
}

const STORE_PAGE = GUEST_XENSTORE_GFN * 4096;
const ANSWER = FREE + 0x1000;
const SHARED_INFO = FREE + 0x2000;
/** In the order in which they are made; also in a new place, where those of store and console are there already. */
const STORE_PORT = 1;
const SUSPEND_PORT = 3;
const HEADER_BYTES = 16;
const REQUEST = 'suspend';
const ring = XENSTORE_DOMAIN_INTERFACE.at;

function message(type: number, payload: string): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  [type, 1, 0, payload.length].forEach((value, i) => header.writeUInt32LE(value, 4 * i));
  return Buffer.concat([header, Buffer.from(payload, 'latin1')]);
}

const MESSAGES = {
  channel: message(XS_TYPE.WRITE, `device/suspend/event-channel\0${SUSPEND_PORT}`),
  feature: message(XS_TYPE.WRITE, 'control/feature-suspend\x001'),
  watch: message(XS_TYPE.WATCH, 'control/shutdown\0x\0'),
  read: message(XS_TYPE.READ, 'control/shutdown\0'),
  acknowledge: message(XS_TYPE.WRITE, 'control/shutdown\0'),
  resumed: message(XS_TYPE.WRITE, 'data/resumed\x00??'),
  go: message(XS_TYPE.READ, 'data/go\0'),
};
type MessageName = keyof typeof MESSAGES;

const offsets = new Map<MessageName, number>();
const data = Buffer.concat(Object.entries(MESSAGES).map(([name, bytes], i, all) => {
  offsets.set(name as MessageName, all.slice(0, i).reduce((sum, [, before]) => sum + before.length, 0));
  return bytes;
}));

/** The bytes of an arm64 Image. */
export function suspendGuest({ channel = true, store = true, answer = 'at-once' }: SuspendGuest = {}): Uint8Array {
  return bareMetalImage({
    data,
    code: a => {
      a.mov(19, STORE_PAGE).mov(20, FREE).mov(21, 0).mov(22, 0).mov(23, 0);
      mapSharedInfo(a);
      if (channel) openChannel(a);
      // The store tells of the watch at once, so that what was asked for before is not missed.
      if (store) request(a, 'watch');
      if (store) request(a, 'feature');
      lookForRequests(a, { channel, store, answer });
      subroutines(a, channel ? 2 : 1);
    },
  });
}

function lookForRequests(a: Assembler, guest: Required<SuspendGuest>): void {
  a.label('loop').cbz(23, 'no-watch').mov(23, 0);
  if (guest.store) {
    request(a, 'read').cmp(12, XS_TYPE.READ).bCond('ne', 'no-watch').cmp(13, REQUEST.length).bCond('ne', 'no-watch');
    // The only word of that length that the host writes.
    request(a, 'acknowledge');
    stopItself(a, guest);
    a.b('loop');
  }
  a.label('no-watch').bl('take-events').tbz(22, SUSPEND_PORT, 'no-event').mov(22, 0);
  stopItself(a, guest);
  a.b('loop');
  a.label('no-event').ldr(4, 19, ring.rsp_cons, 'W').ldr(5, 19, ring.rsp_prod, 'W');
  isEqual(a, 4, 5).bCond('eq', 'no-message').bl('message').b('loop');
  a.label('no-message').bl('wait').b('loop');
}

function stopItself(a: Assembler, { channel, answer }: Required<SuspendGuest>): void {
  const [isCancelled, tell] = ['cancelled', 'tell'].map(fresh) as [string, string];
  if (answer === 'never') return;
  if (answer.startsWith('late')) waitForWord(a);
  a.mov(1, FREE).mov(2, answer.endsWith('crash') ? SHUTDOWN.crash : SHUTDOWN.suspend).str(2, 1, 0, 'W').mov(0, SCHEDOP.shutdown);
  hypercall(a, 'sched_op');
  a.movReg(18, 0).cbnz(0, isCancelled);
  if (channel) openChannel(a);
  a.label(isCancelled).mov(1, DATA + offsets.get('resumed')! + MESSAGES.resumed.length - 2);
  a.add(2, 18, 0x30).str(2, 1, 0, 'B').add(2, 21, 0x61).str(2, 1, 1, 'B').add(21, 21, 1);
  a.cmp(21, 26).bCond('ne', tell).mov(21, 0).label(tell);
  request(a, 'resumed');
}

/** Asks the store again and again. */
function waitForWord(a: Assembler): void {
  const again = fresh('go');
  a.label(again);
  request(a, 'go').cmp(12, XS_TYPE.READ).bCond('ne', again);
}

function mapSharedInfo(a: Assembler): void {
  const { at } = xenAddToPhysmap;
  a.mov(1, FREE).mov(2, DOMID_SELF).str(2, 1, at.domid, 'H').mov(2, XENMAPSPACE.shared_info).str(2, 1, at.space, 'W');
  a.str(31, 1, at.idx).mov(2, SHARED_INFO / 4096).str(2, 1, at.gpfn).mov(0, XENMEM.add_to_physmap);
  hypercall(a, 'memory_op');
}

/** Makes a port on which the host may ask, and says which. */
function openChannel(a: Assembler): void {
  const isGood = fresh('port');
  const { at } = evtchnAllocUnbound;
  a.mov(1, FREE).mov(2, DOMID_SELF).str(2, 1, at.dom, 'H').str(31, 1, at.remote_dom, 'H').mov(0, EVTCHNOP.alloc_unbound);
  hypercall(a, 'event_channel_op');
  a.ldr(2, 20, at.port, 'W').cmp(2, SUSPEND_PORT).bCond('eq', isGood);
  powerOff(a);
  a.label(isGood);
  request(a, 'channel');
}

/** Sends a message and waits for its answer: type in x12, length in x13. */
function request(a: Assembler, name: MessageName): Assembler {
  return a.mov(10, DATA + offsets.get(name)!).mov(11, MESSAGES[name].length).bl('request');
}

function isEqual(a: Assembler, rn: number, rm: number): Assembler {
  return a.emit('SUBS (register)', { sf: 0, Rm: rm, Rn: rn, Rd: 31 });
}
/** x6: where a counter in x4 points to within a ring of the store's page. */
function ringPlace(a: Assembler): void {
  a.emit('UBFM', { sf: 1, N: 1, immr: 0, imms: Math.log2(XENSTORE_RING_SIZE) - 1, Rn: 4, Rd: 6 }).addReg(6, 6, 19);
}
function notifyStore(a: Assembler): void {
  a.mov(1, FREE).mov(2, STORE_PORT).str(2, 1, evtchnPort.at.port, 'W').mov(0, EVTCHNOP.send);
  hypercall(a, 'event_channel_op');
}

function subroutines(a: Assembler, ports: number): void {
  // x10, x11: what to send; the ring has room, since all answers are waited for.
  a.label('request').movReg(15, 30).ldr(4, 19, ring.req_prod, 'W');
  a.label('put').cbz(11, 'sent');
  ringPlace(a);
  a.ldr(7, 10, 0, 'B').str(7, 6, ring.req, 'B').add(10, 10, 1).sub(11, 11, 1).add(4, 4, 1).b('put');
  a.label('sent').dsb().str(4, 19, ring.req_prod, 'W');
  notifyStore(a);
  a.label('answer').bl('message').cmp(12, XS_TYPE.WATCH_EVENT).bCond('eq', 'answer').ret(15);

  // The next message from the store, to ANSWER.
  a.label('message').movReg(14, 30).mov(10, ANSWER).mov(11, HEADER_BYTES).bl('get');
  a.mov(1, ANSWER).ldr(12, 1, 0, 'W').ldr(13, 1, 12, 'W').movReg(11, 13).bl('get');
  notifyStore(a);
  a.cmp(12, XS_TYPE.WATCH_EVENT).bCond('ne', 'no-watch-event').mov(23, 1).label('no-watch-event').ret(14);

  // So many bytes as x11 says to x10.
  a.label('get').movReg(9, 30).label('get-byte').cbz(11, 'got');
  const unlessEmpty = (label: string): void => {
    a.ldr(4, 19, ring.rsp_cons, 'W').ldr(5, 19, ring.rsp_prod, 'W');
    isEqual(a, 4, 5).bCond('ne', label);
  };
  unlessEmpty('take');
  a.bl('take-events');
  unlessEmpty('take');
  a.bl('wait').b('get-byte').label('take');
  ringPlace(a);
  a.ldr(7, 6, ring.rsp, 'B').str(7, 10, 0, 'B').add(10, 10, 1).sub(11, 11, 1).add(4, 4, 1);
  a.str(4, 19, ring.rsp_cons, 'W').b('get-byte').label('got').ret(9);

  // All events since the last time, into x22. Those of the store are found by looking at its ring.
  a.label('take-events').mov(1, SHARED_INFO + sharedInfo.at.evtchn_pending);
  a.emit('SWP', { size: 3, A: 1, R: 1, Rs: 31, Rn: 1, Rt: 2 });
  a.emit('ORR (register)', { sf: 1, Rm: 2, Rn: 22, Rd: 22 }).ret(30);

  // Sleeps until there is an event that has not been taken.
  const PORTS = 0x40;
  a.label('wait').add(1, 20, PORTS).mov(2, STORE_PORT).str(2, 1, 0, 'W').mov(2, SUSPEND_PORT).str(2, 1, 4, 'W');
  a.str(1, 20, schedPoll.at.ports).mov(2, ports).str(2, 20, schedPoll.at.nr_ports, 'W').str(31, 20, schedPoll.at.timeout);
  a.mov(1, FREE).mov(0, SCHEDOP.poll);
  hypercall(a, 'sched_op');
  a.ret(30);
}
