// The host's half of what every guest has: its console, its connection to the store, and what the store says of it.
// Lives as long as the domain; a checkpoint takes its state, rollback puts it back, a fork starts from it.

import { DOMAIN } from '../abi/domain-record.ts';
import { ConsoleBackend } from '../devices/console/backend.ts';
import type { ConsoleState } from '../devices/console/backend.ts';
import { ConsoleRing } from '../devices/console/ring.ts';
import { writeConsoleEntries } from '../devices/console/store-entries.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { heldMfn } from '../hypervisor/held-frames.ts';
import { domainPath, removeDomainEntries, vmPath, writeDomainEntries } from '../lifecycle/store-entries.ts';
import type { ConnectionState } from '../xenstore/connection.ts';
import { XenstoreRing } from '../xenstore/ring.ts';
import type { StoreSnapshot } from '../xenstore/snapshot.ts';
import type { DomainState as StoreDomainState, Store } from '../xenstore/store.ts';
import { GuestNics } from './guest-nics.ts';
import type { NicState } from './guest-nics.ts';
import { EmulatedMachine } from './emulated-machine.ts';
import type { EmulatedState } from './emulated-machine.ts';
import { GuestDisks } from './guest-disks.ts';
import type { OpenedDisk, SavedDisk } from './guest-disks.ts';
import type { HostCore } from './host-core.ts';
import type { NicSpec } from './types.ts';

/** The domain's record and the host's ends of its event channels. */
export interface DomainEnds {
  readonly domain: DomainRecord;
  readonly consolePort: number;
  readonly xenstorePort: number;
}

export interface DomainIdentity {
  readonly name: string;
  readonly uuid: string;
  readonly memoryBytes: number;
  readonly vcpus: number;
}

export interface DeviceState {
  readonly domainId: number;
  readonly console: ConsoleState;
  readonly connection: ConnectionState;
  /** Of the connection that it is the state of. */
  readonly connectionChanges: number;
  /** Undefined: of another process. */
  readonly ring: XenstoreRing | undefined;
  readonly storeDomain: StoreDomainState;
  /** While it still is the store's root, nothing in the store has changed; undefined: of another process. */
  readonly storeRoot: WeakRef<StoreSnapshot> | undefined;
  /** Below /local/domain/ID and /vm/UUID. */
  readonly domainNodes: StoreSnapshot | undefined;
  readonly vmNodes: StoreSnapshot | undefined;
  /** Type hvm only. */
  readonly emulated: EmulatedState | undefined;
  readonly disks: readonly SavedDisk[];
  readonly nics: readonly NicState[];
  /** The guest may still have to hear of what it has in its rings. */
  readonly owesEvents: boolean;
}

/** What a domain begins with. */
export interface FirstDevices {
  /** Of the domain that it is a fork of; and when that one's memory is there, if it is not yet. */
  readonly state?: DeviceState | undefined;
  readonly memoryReady?: Promise<unknown> | undefined;
  readonly disks?: readonly OpenedDisk[] | undefined;
  readonly nics?: readonly NicSpec[] | undefined;
}

export class GuestDevices {
  readonly disks: GuestDisks;
  readonly nics: GuestNics;
  readonly #core: HostCore;
  readonly #ends: DomainEnds;
  readonly #identity: DomainIdentity;
  #console: ConsoleBackend;
  #ring: XenstoreRing;
  /** Of type hvm. */
  readonly emulated: EmulatedMachine | undefined;
  #isConsoleClosed = false;
  #isClosed = false;

  /** The domain is introduced to the store here. */
  constructor(core: HostCore, ends: DomainEnds, identity: DomainIdentity, { state, disks = [], nics = [], memoryReady }: FirstDevices) {
    this.#core = core;
    this.#ends = ends;
    this.#identity = identity;
    if (state !== undefined) this.#restoreStore(state);
    else writeEntries(core, ends.domain, identity);
    core.store.domainIntroduced(ends.domain.domid);
    this.#console = this.#openConsole(state?.console);
    this.#ring = this.#openRing(state?.connection);
    if (ends.domain.get(DOMAIN.at.emulated) !== 0) {
      this.emulated = new EmulatedMachine(core, ends.domain, () => this.#console.service(), state?.emulated);
    }
    this.disks = new GuestDisks(core, ends.domain.domid, { opened: disks, saved: state?.disks ?? [], memoryReady }, this.emulated);
    this.nics = new GuestNics(core, { ...identity, domainId: ends.domain.domid }, this.emulated);
    this.nics.takeOver(state?.nics ?? []);
    for (const nic of nics) this.nics.add(nic);
    core.ports.listen(ends.consolePort, () => this.#console.service());
    core.ports.listen(ends.xenstorePort, () => this.serveStore());
    this.emulated?.start();
  }

  get console(): ConsoleBackend {
    return this.#console;
  }

  #openConsole(state?: ConsoleState): ConsoleBackend {
    const { domain, consolePort } = this.#ends;
    return new ConsoleBackend({
      transport: new ConsoleRing(heldPage(this.#core, domain, DOMAIN.at.console)), state,
      notify: () => {
        if (this.emulated === undefined) this.#core.ports.notify(consolePort);
        else this.emulated.serialMoved();
      },
    });
  }
  #openRing(state?: ConnectionState): XenstoreRing {
    const { domain, xenstorePort } = this.#ends;
    return new XenstoreRing(this.#core.store, {
      domainId: domain.domid, page: heldPage(this.#core, domain, DOMAIN.at.xenstore), state,
      notify: () => this.#core.ports.notify(xenstorePort),
    });
  }

  /** In turns with everything else, however much the guest asks. */
  serveStore(): void {
    if (!this.#isClosed && this.#ring.service()) setImmediate(() => this.serveStore());
  }

  /**
   * What the guest's memory does not hold. With the disks quiesced; whoever has it releases their states. The guest may run: it changes the rings' pages, but only the host's thread
   * changes this.
   */
  save(): DeviceState {
    const { store } = this.#core;
    const { domid } = this.#ends.domain;
    return {
      domainId: domid,
      console: this.#console.save(),
      ring: this.#ring,
      connection: this.#ring.connection.saveState(),
      connectionChanges: this.#ring.connection.changes,
      storeDomain: store.saveDomain(domid),
      storeRoot: new WeakRef(store.snapshot('/')!),
      domainNodes: store.snapshot(domainPath(domid)),
      vmNodes: store.snapshot(vmPath(this.#identity.uuid)),
      emulated: this.emulated?.save(),
      disks: this.disks.save(),
      nics: this.nics.save(),
      owesEvents: this.#console.owesEvent || this.#ring.owesEvent,
    };
  }

  /** The guest's memory is as it was when `state` was taken; the guest may run. With its disks quiesced. */
  restore(state: DeviceState): void {
    this.nics.beginRestore();
    // Most rollbacks find the store as it was; then its connection, too, goes on as it is.
    if (this.#isStoreChanged(state)) {
      this.#ring.close();
      this.#restoreStore(state);
      this.#ring = this.#openRing(state.connection);
    }
    if (this.#isConsoleClosed) this.#console = this.#openConsole(state.console);
    this.#isConsoleClosed = false;
    this.disks.restore(state.disks);
    this.#console.restore(state.console);
    if (state.emulated !== undefined) this.emulated?.restore(state.emulated);
    // The network tells the guest at once of connections that are no more: its cards' registers must be there by then.
    this.nics.restore(state.nics, state.domainId === this.#ends.domain.domid);
    this.serveStore();
  }

  #isStoreChanged(state: DeviceState): boolean {
    const { store } = this.#core;
    const areNodesChanged = () => !isStoreUnchanged(store, state.storeRoot)
      && !(store.isUnchanged(domainPath(state.domainId), state.domainNodes)
        && store.isUnchanged(vmPath(this.#identity.uuid), state.vmNodes));
    return state.ring !== this.#ring || state.connectionChanges !== this.#ring.connection.changes
      || !store.isDomainUnchanged(state.domainId, state.storeDomain) || areNodesChanged();
  }

  #restoreStore(state: DeviceState): void {
    const { store } = this.#core;
    const { domid } = this.#ends.domain;
    const { uuid } = this.#identity;
    const domainIds = new Map(state.domainId === domid ? [] : [[state.domainId, domid]]);
    for (const [path, nodes] of [[domainPath(domid), state.domainNodes], [vmPath(uuid), state.vmNodes]] as const) {
      if (nodes !== undefined) store.restoreSnapshot(path, nodes, { domainIds });
    }
    if (state.domainId !== domid) writeIdentity(this.#core, domid, this.#identity);
    store.restoreDomain(domid, state.storeDomain);
  }

  /** The guest has stopped by itself; its store connection stays. */
  closeConsole(): void {
    this.#isConsoleClosed = true;
    this.#console.close();
    this.emulated?.closeConsole();
  }

  /** Resolves when the disks have all that the guest wrote; all else is done when it returns. */
  close(): Promise<void> {
    const { store, ports } = this.#core;
    const { domain, consolePort, xenstorePort } = this.#ends;
    this.#isClosed = true;
    this.closeConsole();
    this.emulated?.close();
    this.#ring.close();
    const disksClosed = this.disks.close();
    this.nics.close();
    removeDomainEntries(store, { domainId: domain.domid, uuid: this.#identity.uuid });
    store.domainReleased(domain.domid);
    for (const port of [consolePort, xenstorePort]) ports.close(port);
    return disksClosed;
  }
}

/** All of it, as one comparison tells. */
function isStoreUnchanged(store: Store, root: WeakRef<StoreSnapshot> | undefined): boolean {
  const before = root?.deref();
  return before !== undefined && store.isUnchanged('/', before);
}

function writeEntries(core: HostCore, record: DomainRecord, identity: DomainIdentity): void {
  const { store } = core;
  const domainId = record.domid;
  writeDomainEntries(store, { ...identity, domainId });
  writeConsoleEntries({ domainId, ...core.consoleOf(record) }, (path, value) => store.write(path, value));
}

/** What the store says of who a domain is. */
function writeIdentity({ store }: HostCore, domainId: number, { name, uuid }: DomainIdentity): void {
  const base = domainPath(domainId);
  const vm = vmPath(uuid);
  const entries = {
    [`${base}/name`]: name, [`${base}/domid`]: String(domainId), [`${base}/vm`]: vm,
    [`${vm}/name`]: name, [`${vm}/uuid`]: uuid,
  };
  for (const [path, value] of Object.entries(entries)) store.write(path, value);
}

/** The page that the domain's record holds now; a view is made only when that is another frame than last time. */
export function heldPage({ thread }: HostCore, record: DomainRecord, field: number): () => Uint8Array {
  let mfn = 0;
  let page: Uint8Array = new Uint8Array(0);
  return () => {
    const now = heldMfn(thread.environment, record.address + field);
    if (now !== mfn) {
      mfn = now;
      page = thread.machine.frameBytes(mfn);
    }
    return page;
  };
}
