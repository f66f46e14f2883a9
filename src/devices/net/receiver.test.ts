import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NETIF_RSP, netifRxRequest } from '../../abi/xen-net.ts';
import { NO_OFFLOAD } from '../../network/frame-port.ts';
import { Receiver } from './receiver.ts';
import { NetRing } from './ring.ts';
import { TestGuest, TestRing } from './test-front-end.ts';

test('a page that the guest has granted to be read only is not written to: the frame is one with an error', () => {
  const guest = new TestGuest(8);
  const requests = new TestRing(guest, 0, netifRxRequest.sizeBytes);
  for (const [page, mayWrite] of [[2, false], [3, true]] as const) guest.granted.set(page, mayWrite);
  [2, 3].forEach((page, id) => requests.put(id, page));
  requests.push();
  const counters = { rxErrors: 0, rxStalls: 0 };
  const ring = new NetRing(guest, 0, netifRxRequest.sizeBytes, 0);
  const receiver = new Receiver(guest, ring, counters);
  for (const byte of [0xaa, 0xbb]) assert.ok(receiver.receive(new Uint8Array(100).fill(byte), NO_OFFLOAD));
  ring.publish();
  assert.ok(guest.page(2).every((byte) => byte === 0));
  assert.ok(guest.page(3).subarray(0, 100).every((byte) => byte === 0xbb));
  assert.deepEqual(requests.responses().map((slot) => [slot.readUInt16LE(0), slot.readInt16LE(6)]), [[0, NETIF_RSP.error], [1, 100]]);
  assert.equal(counters.rxErrors, 1);
  ring.letGo();
  assert.equal(guest.inUse, 0);
});
