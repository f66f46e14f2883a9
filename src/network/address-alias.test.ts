// A guest's addresses exchanged for its port's: everything that a frame says of them, with checksums that hold.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AddressAlias } from './address-alias.ts';
import { addBytes, finish, pseudoHeaderSum } from './checksum.ts';
import { CHECKSUM_PARTIAL, NO_OFFLOAD } from './frame-port.ts';
import { parseCardState } from './card-state.ts';
import { Ipv4Header } from './packet.ts';
import { readMac, readU16, readU32, writeMac, writeU16, writeU32 } from './wire.ts';

const GUEST = { mac: 0x00163e_010101, address: 0x0a00020f };
const PORT = { mac: 0x00163e_020202, address: 0x0a000212 };
const OTHER = { mac: 0x525a_0a000202, address: 0x0a000202 };
/** Where the checksum is, from the start of the transport header. */
const CHECKSUM_AT: Readonly<Record<number, number>> = { 1: 2, 6: 16, 17: 6 };

type Card = typeof GUEST;

function frameOf(from: Card, to: Card, protocol: number, payload: Uint8Array): Uint8Array {
  const frame = new Uint8Array(34 + payload.length);
  writeMac(frame, 0, to.mac);
  writeMac(frame, 6, from.mac);
  writeU16(frame, 12, 0x0800);
  frame[14] = 0x45;
  writeU16(frame, 16, 20 + payload.length);
  frame[22] = 64;
  frame[23] = protocol;
  writeU32(frame, 26, from.address);
  writeU32(frame, 30, to.address);
  writeU16(frame, 24, finish(addBytes(0, frame, 14, 34)));
  frame.set(payload, 34);
  const at = 34 + CHECKSUM_AT[protocol]!;
  writeU16(frame, at, 0);
  const pseudo = protocol === 1 ? 0 : pseudoHeaderSum(from.address, to.address, protocol, payload.length);
  const checksum = finish(addBytes(pseudo, frame, 34, frame.length));
  writeU16(frame, at, checksum === 0 && protocol === 17 ? 0xffff : checksum);
  return frame;
}

function checksumsHold(frame: Uint8Array): boolean {
  const header = new Ipv4Header();
  if (!header.parse(frame)) return false;
  return header.protocol === 1 ? finish(addBytes(0, frame, 34, frame.length)) === 0 : header.transportChecksumHolds(frame);
}

test('TCP, UDP and ping both ways, with checksums that hold', () => {
  fc.assert(fc.property(fc.constantFrom(1, 6, 17), fc.uint8Array({ minLength: 20, maxLength: 200 }), (protocol, payload) => {
    if (protocol === 1) payload[0] = 8;
    if (protocol === 17) payload[0] = 0x30; // no DHCP
    const alias = new AddressAlias(GUEST, PORT);
    const out = alias.fromGuest(frameOf(GUEST, OTHER, protocol, payload), NO_OFFLOAD).slice();
    assert.deepEqual(out.length, 34 + payload.length);
    assert.deepEqual([readMac(out, 6), readU32(out, 26)], [PORT.mac, PORT.address]);
    assert(checksumsHold(out));
    const back = alias.toGuest(frameOf(OTHER, PORT, protocol, payload), NO_OFFLOAD);
    assert.deepEqual([readMac(back, 0), readU32(back, 30)], [GUEST.mac, GUEST.address]);
    assert(checksumsHold(back));
  }));
});

test('the one whose address the guest believes in is where the guest itself is', () => {
  const alias = new AddressAlias(GUEST, PORT);
  const original = { mac: 0x00163e_030303, address: GUEST.address };
  const inside = alias.toGuest(frameOf(original, PORT, 6, new Uint8Array(20)), NO_OFFLOAD).slice();
  assert.deepEqual([readU32(inside, 26), readU32(inside, 30)], [PORT.address, GUEST.address]);
  assert(checksumsHold(inside));
  const answer = alias.fromGuest(frameOf(GUEST, { mac: original.mac, address: PORT.address }, 6, new Uint8Array(20)), NO_OFFLOAD);
  assert.deepEqual([readU32(answer, 26), readU32(answer, 30)], [PORT.address, original.address]);
  assert(checksumsHold(answer));
  assert.equal(alias.addressInside(GUEST.address), PORT.address);
  assert.equal(alias.addressInside(OTHER.address), OTHER.address);
});

test('a partial checksum stays the sum of the pseudo-header', () => {
  const alias = new AddressAlias(GUEST, PORT);
  const frame = frameOf(GUEST, OTHER, 6, new Uint8Array(40));
  writeU16(frame, 50, ~finish(pseudoHeaderSum(GUEST.address, OTHER.address, 6, 40)) & 0xffff);
  const out = alias.fromGuest(frame, CHECKSUM_PARTIAL);
  assert.equal(readU16(out, 50), ~finish(pseudoHeaderSum(PORT.address, OTHER.address, 6, 40)) & 0xffff);
});

test('ARP, DHCP and what an ICMP error quotes', () => {
  const alias = new AddressAlias(GUEST, PORT);
  const arp = new Uint8Array(42);
  writeMac(arp, 0, 0xffff_ffff_ffff);
  writeMac(arp, 6, GUEST.mac);
  writeU16(arp, 12, 0x0806);
  writeMac(arp, 22, GUEST.mac);
  writeU32(arp, 28, GUEST.address);
  writeU32(arp, 38, OTHER.address);
  const out = alias.fromGuest(arp, NO_OFFLOAD);
  assert.deepEqual([readMac(out, 6), readMac(out, 22), readU32(out, 28), readU32(out, 38)],
    [PORT.mac, PORT.mac, PORT.address, OTHER.address]);

  const dhcp = new Uint8Array(8 + 244);
  writeU16(dhcp, 0, 68);
  writeU16(dhcp, 2, 67);
  writeU16(dhcp, 4, dhcp.length);
  writeMac(dhcp, 8 + 28, GUEST.mac);
  const asked = alias.fromGuest(frameOf({ ...GUEST, address: 0 }, { mac: 0xffff_ffff_ffff, address: 0xffff_ffff }, 17, dhcp), NO_OFFLOAD);
  assert.deepEqual([readMac(asked, 6), readMac(asked, 34 + 36), readU16(asked, 40)], [PORT.mac, PORT.mac, 0]);

  const quoted = frameOf(PORT, OTHER, 17, new Uint8Array(8)).subarray(14);
  const error = new Uint8Array(8 + quoted.length);
  error[0] = 3;
  error.set(quoted, 8);
  const inside = alias.toGuest(frameOf(OTHER, PORT, 1, error), NO_OFFLOAD);
  assert.equal(readU32(inside, 34 + 8 + 12), GUEST.address);
  assert(checksumsHold(inside));
  assert.equal(finish(addBytes(0, inside, 42, 62)), 0);
});

test('a guest that has learned its addresses is left alone', () => {
  const alias = new AddressAlias(GUEST, PORT);
  const own = frameOf(PORT, OTHER, 6, new Uint8Array(20));
  assert.deepEqual(alias.fromGuest(own, NO_OFFLOAD), own);
  const back = frameOf(OTHER, PORT, 6, new Uint8Array(20));
  assert.deepEqual(alias.toGuest(back, NO_OFFLOAD), back);
  assert.deepEqual(alias.believed, PORT);
  assert.equal(AddressAlias.of(PORT, PORT), undefined);
});

test('frames full of nonsense', () => {
  const alias = new AddressAlias(GUEST, PORT);
  fc.assert(fc.property(fc.uint8Array({ minLength: 14, maxLength: 120 }), fc.constantFrom(0x0800, 0x0806, 0x86dd), (frame, type) => {
    writeU16(frame, 12, type);
    assert.equal(alias.fromGuest(frame, NO_OFFLOAD).length, frame.length);
    assert.equal(alias.toGuest(frame, CHECKSUM_PARTIAL).length, frame.length);
  }), { numRuns: 500 });
});

test('card states of an image', () => {
  const connection = { guestMac: 1, guestAddress: 2, guestPort: 3, remoteAddress: 4, remotePort: 5, una: 6 };
  const good = { ...PORT, guest: GUEST, connections: [connection] };
  assert.deepEqual(parseCardState(JSON.parse(JSON.stringify(good))), good);
  for (const bad of [null, 1, {}, { ...good, guest: null }, { ...good, mac: 2 ** 48 }, { ...good, address: -1 },
    { ...good, connections: {} }, { ...good, connections: [null] }, { ...good, connections: [{ ...connection, una: 2 ** 32 }] },
    { ...good, connections: Array.from({ length: 4097 }, () => connection) }]) assert.equal(parseCardState(bad), undefined);
});
