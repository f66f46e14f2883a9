import assert from 'node:assert/strict';
import { test } from 'node:test';
import { netifRxRequest, netifTxRequest } from '../abi/xen-net.ts';
import { unreachable } from '../base/assert.ts';
import { TestGuest, TestRing, txSlot } from '../devices/net/test-front-end.ts';
import type { NetConnection } from '../devices/net/backend.ts';
import { NetworkService } from './network-service.ts';

const TX_PAGE = 30;
const RX_PAGE = 31;
const PAGE_BYTES = 4096;
const FEATURES = { checksumPartial: false, tsoV4: false, tsoV6: false };
const connection: NetConnection = {
  queues: [{ txRef: TX_PAGE, rxRef: RX_PAGE, txPort: 3, rxPort: 3, txPosition: 0, rxPosition: 0 }], features: FEATURES, scatterGather: true,
};
const macOf = (card: number): string => `00:16:3e:00:00:0${card}`;

/** Cards 1 … count on one network, each of a guest of its own with a driver that has sent nothing and given no buffers. */
function rig(count: number) {
  const guests = Array.from({ length: count }, () => new TestGuest(32));
  const service = new NetworkService({ busOf: (domid) => guests[domid - 1]!, slotOf: () => unreachable('a machine without slots') });
  const cards = guests.map((guest, i) => {
    const card = i + 1;
    service.attach({ card, domid: card, network: 'default', mac: macOf(card), name: `guest${card}` });
    const tx = new TestRing(guest, TX_PAGE, netifTxRequest.sizeBytes);
    const rx = new TestRing(guest, RX_PAGE, netifRxRequest.sizeBytes);
    assert(service.connect(card, connection));
    return {
      guest, tx, rx,
      /** A frame to another card, which it has in its page 1. */
      send: (to: number, sizeBytes: number) => {
        guest.granted.set(1, false);
        const bytes = [macOf(to), macOf(card)].flatMap((mac) => mac.split(':').map((byte) => Number.parseInt(byte, 16)));
        guest.memory.set(bytes, PAGE_BYTES);
        tx.put(...txSlot(1, 0, 0, 9, sizeBytes));
        tx.push();
        guest.kick();
      },
      give: (buffers: number) => {
        for (let page = 2; page < 2 + buffers; page++) {
          guest.granted.set(page, true);
          rx.put(page, page);
        }
        rx.push();
        guest.kick();
      },
      received: () => rx.responses().map((slot) => slot.readInt16LE(6)),
    };
  });
  return { service, cards };
}

test('a card that is held loses no frame, and takes none twice', async () => {
  const { service, cards: [left, right] } = rig(2);
  right!.give(8);
  left!.send(2, 60);
  assert.deepEqual(right!.received(), [60]);
  // The sender is held: its frame stays in its ring, and the state says so.
  const [saved] = service.holdAndSave([1]);
  left!.send(2, 70);
  assert.deepEqual([right!.received(), left!.guest.inUse, saved!.connection!.queues[0]!.txPosition], [[], 0, 1]);
  service.release([1]);
  assert.deepEqual(right!.received(), [70]);
  // The receiver is held: frames wait in the network.
  service.hold([2]);
  left!.send(2, 80);
  left!.send(2, 90);
  assert.deepEqual([right!.received(), right!.guest.inUse, left!.tx.responses().length], [[], 0, 4]);
  service.hold([2]);
  service.release([2]);
  assert.deepEqual(right!.received(), [80, 90]);
  service.release([1, 2]);
  assert.deepEqual(right!.received(), []);
  assert.deepEqual(service.cardMetrics([1, 2]).map(({ port }) => [port.txFrames, port.rxFrames]), [[4, 0], [0, 4]]);
  await service.close();
});

test('a guest that is put back while its card is held goes on where the state was taken', async () => {
  const { service, cards: [left, right] } = rig(2);
  right!.give(8);
  const [state] = service.holdAndSave([2]);
  const ring = Buffer.from(right!.guest.page(RX_PAGE));
  service.release([2]);
  left!.send(2, 60);
  assert.deepEqual(right!.received(), [60]);
  service.hold([2]);
  left!.send(2, 70);
  // Its memory is as it was: eight buffers, and nothing in any.
  right!.guest.page(RX_PAGE).set(ring);
  right!.rx.seen = 0;
  assert(service.goOn(2, state!.connection!));
  service.restoreCard(2, state!.card);
  service.wake(2);
  assert.deepEqual([right!.received(), right!.guest.inUse], [[], 0]);
  service.release([2]);
  assert.deepEqual(right!.received(), [70]);
  await service.close();
});

test('when a card is detached or the service ends, nothing of a guest is in use, held or not', async () => {
  const { service, cards } = rig(3);
  for (const { give } of cards) give(2);
  service.hold([2]);
  service.detach([1, 2]);
  assert.deepEqual(cards.map(({ guest }) => [guest.inUse > 0, guest.callbacks.size]), [[false, 0], [false, 0], [true, 1]]);
  // A release that was on its way is none of theirs.
  service.release([1, 2]);
  await service.close();
  assert.deepEqual([cards[2]!.guest.inUse, cards[2]!.guest.callbacks.size], [0, 0]);
});
