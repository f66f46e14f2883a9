// Network cards as people write them: xl's syntax (docs/man/xl-network-configuration.5) for `vif` of a configuration
// and network-attach, as far as it means something here, and ports to forward.
//
//   key=value [, key=value]...      mac=00:16:3e:12:34:56,bridge=private,ip=10.0.2.20,forward=8080:80,rate=10MB/s
//   bridge: name of the network     forward: may be repeated     rate: b/s, B/s, Kb/s, KB/s, Mb/s, MB/s, Gb/s, GB/s

import { ZazenError } from '../base/errors.ts';
import { parsePortForward } from '../network/port-forward.ts';
import type { NicSpec } from '../host/types.ts';

/** Of Xen's own ways to wire a card, which make no difference here. */
const IGNORED = new Set([
  'type', 'model', 'script', 'backend', 'vifname', 'gatewaydev', 'netdev', 'devid', 'mtu', 'trusted',
]);
const UNITS: Readonly<Record<string, number>> = { '': 1, K: 1e3, M: 1e6, G: 1e9 };

/** @throws ZazenError ZAZEN_NIC_SPEC; UsageError for a forward */
export function parseVif(text: string): NicSpec {
  const given: { -readonly [K in keyof NicSpec]: NicSpec[K] } = {};
  const forwards: string[] = [];
  for (const word of text.split(',').map((part) => part.trim())) {
    if (word === '') continue;
    const [, key, value] = /^(\w+)\s*=\s*(.*)$/.exec(word) ?? [];
    if (key === undefined || value === undefined || value === '') throw refusal(text, `"${word}" is not understood`);
    if (key === 'mac') given.mac = value;
    else if (key === 'bridge') given.network = value;
    else if (key === 'ip') given.address = value;
    else if (key === 'rate') given.rateBytesPerSecond = parseRate(value) ?? refuse(text, `"${value}" is no rate`);
    else if (key === 'forward') forwards.push(value);
    else if (!IGNORED.has(key)) throw refusal(text, `there is no key "${key}"`);
  }
  for (const forward of forwards) parsePortForward(forward);
  return forwards.length === 0 ? given : { ...given, forwards };
}

/** As xl's, whose interval after `@` makes no difference. */
function parseRate(text: string): number | undefined {
  const [, amount, unit, bits] = /^(\d{1,12})([KMG]?)([bB])\/s(?:@\d+[um]?s)?$/.exec(text) ?? [];
  if (amount === undefined) return undefined;
  const rate = Number(amount) * UNITS[unit!]! / (bits === 'b' ? 8 : 1);
  return rate > 0 ? rate : undefined;
}

function refusal(text: string, what: string): ZazenError {
  return new ZazenError('ZAZEN_NIC_SPEC', `network card "${text}": ${what}`, {
    hint: 'write mac=00:16:3e:12:34:56,bridge=NETWORK,forward=8080:80; all of it may be left out',
  });
}

function refuse(text: string, what: string): never {
  throw refusal(text, what);
}
