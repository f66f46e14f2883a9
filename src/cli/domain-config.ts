// What the keys of xl.cfg mean to Zazen: a spec and what to do when the guest stops. A key whose feature is not there
// is refused by name rather than left out: a guest without its disk is not what was asked for. Keys that only tune are
// left out with a warning.

import { resolve } from 'node:path';
import { ZazenError } from '../base/errors.ts';
import type { ControlledSpec, StopAction, StopPolicy } from '../daemon/command.ts';
import { parseDisk } from './disk-syntax.ts';
import { parseVif } from './vif-syntax.ts';
import { parseConfig } from './xl-config.ts';
import type { ConfigEntry, ConfigValue } from './xl-config.ts';

export interface DomainConfig {
  readonly spec: ControlledSpec;
  readonly policy: StopPolicy;
  /** What was left out, a line each. */
  readonly warnings: readonly string[];
}

const KNOWN = new Set([
  'name', 'uuid', 'type', 'builder', 'memory', 'maxmem', 'vcpus', 'maxvcpus', 'kernel', 'ramdisk', 'cmdline', 'root',
  'extra', 'disk', 'vif', 'on_poweroff', 'on_reboot', 'on_crash', 'on_watchdog', 'cpu_weight', 'cap',
]);

/** Devices and the like, which a guest would miss. Empty ones are no loss. */
const REFUSED: Readonly<Record<string, string>> = {
  vfb: 'framebuffers', vkb: 'keyboards', vsnd: 'sound', vtpm: 'TPMs',
  p9: '9pfs shares', pci: 'PCI passthrough', dtdev: 'device passthrough', iomem: 'I/O memory passthrough',
  irqs: 'interrupt passthrough', usbctrl: 'USB', usbdev: 'USB', usbdevice: 'USB', channel: 'channels',
  serial: 'serial ports', virtio: 'virtio devices', vdispl: 'displays', pvcalls: 'PV calls', rdm: 'reserved regions',
  device_tree: 'partial device trees', bootloader: 'boot loaders', firmware_override: 'firmware', vuart: 'UARTs',
  tee: 'trusted execution environments', nestedhvm: 'nested virtualization', driver_domain: 'driver domains',
};

/** @param cwd of the person: relative paths in the file start there, as with xl */
export function readDomainConfig(text: string, source: string, cwd: string): DomainConfig {
  const entries = parseConfig(text, source);
  const reader = new ConfigReader(entries, source);
  for (const [key, { value }] of entries) reader.checkKey(key, value);
  const type = readType(reader);
  const kernel = reader.text('kernel');
  const ramdisk = reader.text('ramdisk');
  const isDebian = kernel === undefined || kernel === 'debian' || kernel === 'debian-generic';
  const name = reader.text('name');
  const uuid = reader.text('uuid');
  const vcpus = readVcpus(reader);
  const memory = readMemory(reader);
  const cpuWeight = reader.number('cpu_weight');
  const cpuCapPercent = reader.number('cap');
  const cmdline = readCmdline(reader);
  const nics = reader.texts('vif').map(parseVif);
  const disks = reader.texts('disk').map((disk) => parseDisk(disk, cwd));
  return {
    spec: {
      ...(name === undefined ? {} : { name }),
      ...(type === 'hvm' ? { type } : {}),
      ...(uuid === undefined ? {} : { uuid }),
      ...(memory === undefined ? {} : { memory }),
      ...(vcpus === undefined ? {} : { vcpus }),
      ...(kernel === undefined ? {} : { kernel: isDebian ? kernel : resolve(cwd, kernel) }),
      // As with xl, a kernel of one's own gets the initramfs that is named, or none.
      ...(ramdisk === undefined ? isDebian ? {} : { initrd: 'none' } : { initrd: resolve(cwd, ramdisk) }),
      ...(cmdline === undefined ? {} : { cmdline }),
      ...(cpuWeight === undefined ? {} : { cpuWeight }),
      ...(cpuCapPercent === undefined ? {} : { cpuCapPercent }),
      ...(disks.length === 0 ? {} : { disks }),
      ...(nics.length === 0 ? {} : { nics }),
    },
    policy: readPolicy(reader),
    warnings: reader.warnings,
  };
}

class ConfigReader {
  readonly warnings: string[] = [];
  readonly #entries: ReadonlyMap<string, ConfigEntry>;
  readonly #source: string;

  constructor(entries: ReadonlyMap<string, ConfigEntry>, source: string) {
    this.#entries = entries;
    this.#source = source;
  }

  refuse(key: string, what: string, hint?: string): never {
    const line = this.#entries.get(key)!.line;
    throw new ZazenError('ZAZEN_CONFIG_VALUE', `${this.#source}, line ${line}: ${key}: ${what}`, { hint });
  }
  warn(key: string, what: string): void {
    this.warnings.push(`${this.#source}, line ${this.#entries.get(key)!.line}: ${key}: ${what}`);
  }

  checkKey(key: string, value: ConfigValue): void {
    if (KNOWN.has(key)) return;
    const feature = Object.hasOwn(REFUSED, key) ? REFUSED[key] : undefined;
    if (feature === undefined) return this.warn(key, 'Zazen does not know this key; it is left out');
    const isEmpty = value === '' || value === 0 || Array.isArray(value) && value.length === 0;
    if (!isEmpty) this.refuse(key, `${feature} are not supported`, `take ${key} out of the file`);
  }

  has(key: string): boolean {
    return this.#entries.has(key);
  }
  text(key: string): string | undefined {
    const value = this.#entries.get(key)?.value;
    if (value === undefined || typeof value === 'string') return value === '' ? undefined : value;
    return this.refuse(key, 'a string in quotes is expected');
  }
  texts(key: string): string[] {
    const value = this.#entries.get(key)?.value ?? [];
    if (!Array.isArray(value)) return this.refuse(key, 'a list of strings in [ ] is expected');
    return value.map((one) => typeof one === 'string' ? one : this.refuse(key, 'a list of strings is expected'));
  }
  /** A number, or a string that is one: people quote them. */
  number(key: string): number | undefined {
    const value = this.#entries.get(key)?.value;
    if (value === undefined || typeof value === 'number') return value;
    if (typeof value === 'string' && /^\d{1,15}$/.test(value)) return Number(value);
    return this.refuse(key, 'a number is expected');
  }
}

function readType(reader: ConfigReader): 'pvh' | 'hvm' {
  const key = reader.has('type') ? 'type' : 'builder';
  const type = reader.text(key);
  // On Arm, Xen has one kind of guest, which it calls PVH; xl takes pv for it as well. hvm is a machine of our own.
  if (type === undefined || type === 'pvh' || type === 'pv' || (key === 'builder' && type === 'generic')) return 'pvh';
  if (type === 'hvm') return type;
  return reader.refuse(key, `there is no type "${type}"`, 'use type="pvh" or type="hvm"');
}

function readMemory(reader: ConfigReader): string | undefined {
  const memory = reader.number('memory');
  const maxmem = reader.number('maxmem');
  if (maxmem !== undefined) {
    if (maxmem < (memory ?? 0)) reader.refuse('maxmem', 'it is less than memory');
    if (memory !== undefined && maxmem > memory) reader.warn('maxmem', 'guests do not grow yet; the guest gets memory');
  }
  const mebibytes = memory ?? maxmem;
  return mebibytes === undefined ? undefined : `${mebibytes}MiB`;
}

function readVcpus(reader: ConfigReader): number | undefined {
  const vcpus = reader.number('vcpus');
  const maxvcpus = reader.number('maxvcpus');
  if (maxvcpus !== undefined) {
    if (maxvcpus < (vcpus ?? 1)) reader.refuse('maxvcpus', 'it is less than vcpus');
    if (maxvcpus > (vcpus ?? 1)) reader.warn('maxvcpus', 'vCPUs are not added later; the guest gets vcpus');
  }
  return vcpus;
}

/** As xl: cmdline, or else root and extra. */
function readCmdline(reader: ConfigReader): string | undefined {
  const cmdline = reader.text('cmdline');
  const root = reader.text('root');
  const extra = reader.text('extra');
  if (cmdline !== undefined) {
    for (const key of ['root', 'extra']) {
      if (reader.text(key) !== undefined) reader.warn(key, 'cmdline is there, so it is left out');
    }
    return cmdline;
  }
  const words = [root === undefined ? undefined : `root=${root}`, extra].filter((word) => word !== undefined);
  return words.length === 0 ? undefined : words.join(' ');
}

const STOP_ACTIONS: readonly StopAction[] = ['destroy', 'restart', 'preserve'];

function readPolicy(reader: ConfigReader): StopPolicy {
  const read = (key: string): StopAction | undefined => {
    const given = reader.text(key);
    if (given === undefined) return undefined;
    return STOP_ACTIONS.find((action) => action === given)
      ?? reader.refuse(key, `there is no action "${given}"`, `use ${STOP_ACTIONS.join(', ')}`);
  };
  const onPoweroff = read('on_poweroff');
  const onReboot = read('on_reboot');
  const onCrash = read('on_crash');
  const onWatchdog = read('on_watchdog');
  if (onWatchdog !== undefined && onWatchdog !== (onCrash ?? 'destroy')) {
    reader.warn('on_watchdog', 'the watchdog counts as a crash; on_crash is what is done');
  }
  return {
    ...(onPoweroff === undefined ? {} : { onPoweroff }),
    ...(onReboot === undefined ? {} : { onReboot }),
    ...(onCrash === undefined ? {} : { onCrash }),
  };
}
