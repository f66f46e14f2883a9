// The requests of the protocol, one handler each: payload in, payload of the reply out, XsError for a refusal. What
// each does and answers is said in Xen's docs/misc/xenstore.txt; errnos are those of Xen's C store.

import { XENSTORE_PAYLOAD_MAX, XENSTORE_SERVER_FEATURE, XS_TYPE } from '../abi/xenstore-wire.ts';
import { closedStrings, parseDecimal, stringToBytes } from './bytes.ts';
import { SUPPORTED_FEATURES } from './core.ts';
import type { StoreCore } from './core.ts';
import { XsError } from './errors.ts';
import {
  directory, getPermissions, makeDirectory, read, remove, setPermissions, write,
} from './operations.ts';
import { domainPath, isSpecial } from './path.ts';
import { formatPermission, parsePermissions } from './permissions.ts';
import { isQuotaName, QUOTA_NAMES } from './quota.ts';
import type { Quota, QuotaName } from './quota.ts';
import type { Session } from './session.ts';

export interface RequestContext {
  readonly core: StoreCore;
  readonly session: Session;
  /** tx_id of the message; requests that know no transactions ignore it. */
  readonly transactionId: number;
}

interface Request {
  /** Refused to others with EACCES. */
  readonly privileged?: boolean;
  readonly handle: (context: RequestContext, payload: Uint8Array) => Uint8Array;
}

const MAX_U32 = 0xffffffff;
const MAX_DOMAIN_ID = 0xffff;
/** The first number that names no real domain. */
const DOMID_FIRST_RESERVED = 0x7ff0;
const DOMID_SELF = 0x7ff0;
const OK = stringToBytes('OK\0');

const text = (reply: string) => stringToBytes(`${reply}\0`);

/** @returns the payload to reply with. */
export function answer(context: RequestContext, type: number, payload: Uint8Array): Uint8Array {
  const request = REQUESTS.get(type);
  if (request === undefined) throw new XsError('ENOSYS');
  if (request.privileged && !context.session.privileged) throw new XsError('EACCES');
  return request.handle(context, payload);
}

// -- Arguments ---------------------------------------------------------------------------------------------------

function strings(payload: Uint8Array, count: number): string[] {
  const given = closedStrings(payload);
  if (given.length !== count) throw new XsError('EINVAL');
  return given;
}

/** The only argument: one string, whose NUL ends the payload. */
function single(payload: Uint8Array): string {
  if (payload.indexOf(0) !== payload.length - 1) throw new XsError('EINVAL');
  return strings(payload, 1)[0]!;
}

function decimal(given: string | undefined, max: number): number {
  const value = given === undefined ? undefined : parseDecimal(given, max);
  if (value === undefined) throw new XsError('EINVAL');
  return value;
}

/** Number of a real domain other than the toolstack's. */
function guestId(given: string | undefined): number {
  const id = decimal(given, DOMID_FIRST_RESERVED - 1);
  if (id === 0) throw new XsError('EINVAL');
  return id;
}

function introducedId({ core }: RequestContext, given: string | undefined): number {
  const id = guestId(given);
  if (core.introducedDomain(id) === undefined) throw new XsError('ENOENT');
  return id;
}

const surfaceOf = ({ session, transactionId }: RequestContext) => session.surface(transactionId);

// -- Nodes -------------------------------------------------------------------------------------------------------

const childList = (children: ReadonlyMap<string, unknown>) =>
  stringToBytes([...children.keys()].map((name) => `${name}\0`).join(''));

function handleDirectory(context: RequestContext, payload: Uint8Array): Uint8Array {
  const node = directory(surfaceOf(context), context.session, context.session.path(single(payload)));
  if (node.childListBytes > XENSTORE_PAYLOAD_MAX) throw new XsError('E2BIG');
  return childList(node.children);
}

/** Whole names only; an empty name says that the list is complete. */
function handleDirectoryPart(context: RequestContext, payload: Uint8Array): Uint8Array {
  const [path, offsetText] = strings(payload, 2);
  const node = directory(surfaceOf(context), context.session, context.session.path(path!));
  const offset = decimal(offsetText, MAX_U32);
  const generation = text(String(Math.max(node.dataGeneration, node.childrenGeneration)));
  const list = childList(node.children).subarray(offset);
  const room = XENSTORE_PAYLOAD_MAX - generation.length - 1;
  const complete = list.length <= room;
  const part = complete ? list : list.subarray(0, list.lastIndexOf(0, room - 1) + 1);
  const reply = new Uint8Array(generation.length + part.length + (complete ? 1 : 0));
  reply.set(generation);
  reply.set(part, generation.length);
  return reply;
}

function handleRead(context: RequestContext, payload: Uint8Array): Uint8Array {
  return read(surfaceOf(context), context.session, context.session.path(single(payload)));
}

function handleWrite(context: RequestContext, payload: Uint8Array): Uint8Array {
  const [path] = closedStrings(payload);
  if (path === undefined) throw new XsError('EINVAL');
  write(surfaceOf(context), context.session, context.session.path(path), payload.slice(path.length + 1));
  return OK;
}

function handleMkdir(context: RequestContext, payload: Uint8Array): Uint8Array {
  makeDirectory(surfaceOf(context), context.session, context.session.path(single(payload)));
  return OK;
}

function handleRm(context: RequestContext, payload: Uint8Array): Uint8Array {
  remove(surfaceOf(context), context.session, context.session.path(single(payload)));
  return OK;
}

function handleGetPerms(context: RequestContext, payload: Uint8Array): Uint8Array {
  const { core, session } = context;
  const path = session.path(single(payload), true);
  const permissions = isSpecial(path)
    ? core.specialPermissions(session, path)
    : getPermissions(surfaceOf(context), session, path);
  return stringToBytes(permissions.map((permission) => `${formatPermission(permission)}\0`).join(''));
}

function handleSetPerms(context: RequestContext, payload: Uint8Array): Uint8Array {
  const { core, session } = context;
  const [given, ...texts] = closedStrings(payload);
  if (given === undefined) throw new XsError('EINVAL');
  const permissions = parsePermissions(texts);
  const path = session.path(given, true);
  if (isSpecial(path)) core.setSpecialPermissions(session, path, permissions);
  else setPermissions(surfaceOf(context), session, path, permissions);
  return OK;
}

// -- Watches and transactions --------------------------------------------------------------------------------------

function handleWatch({ core, session }: RequestContext, payload: Uint8Array): Uint8Array {
  const [path, token, depthText, ...more] = closedStrings(payload);
  if (path === undefined || token === undefined || more.length > 0) throw new XsError('EINVAL');
  let depth = Infinity;
  if (depthText !== undefined) {
    const features = session.privileged ? SUPPORTED_FEATURES : core.featuresOf(session.domainId);
    if ((features & XENSTORE_SERVER_FEATURE.WATCHDEPTH) === 0) throw new XsError('EINVAL');
    depth = decimal(depthText, MAX_U32);
  }
  session.addWatch(path, token, depth);
  return OK;
}

function handleUnwatch({ session }: RequestContext, payload: Uint8Array): Uint8Array {
  const [path, token] = strings(payload, 2);
  session.removeWatch(path!, token!);
  return OK;
}

function handleResetWatches({ session }: RequestContext): Uint8Array {
  session.reset();
  return OK;
}

function handleTransactionStart({ session, transactionId }: RequestContext): Uint8Array {
  if (transactionId !== 0) throw new XsError('EBUSY');
  return text(String(session.startTransaction()));
}

function handleTransactionEnd({ session, transactionId }: RequestContext, payload: Uint8Array): Uint8Array {
  const verdict = single(payload);
  if (verdict !== 'T' && verdict !== 'F') throw new XsError('EINVAL');
  session.endTransaction(transactionId, verdict === 'T');
  return OK;
}

// -- Domains -----------------------------------------------------------------------------------------------------

function handleIntroduce({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const [domainText, gfnText, portText] = closedStrings(payload);
  const id = guestId(domainText);
  const gfn = decimal(gfnText, Number.MAX_SAFE_INTEGER);
  const port = decimal(portText, MAX_U32);
  if (core.hooks.introduce?.(id, gfn, port) === false) throw new XsError('EINVAL');
  core.introduce(id);
  return OK;
}

function handleRelease(context: RequestContext, payload: Uint8Array): Uint8Array {
  const id = introducedId(context, single(payload));
  context.core.hooks.release?.(id);
  context.core.release(id);
  return OK;
}

function handleResume(context: RequestContext, payload: Uint8Array): Uint8Array {
  context.core.resume(introducedId(context, single(payload)));
  return OK;
}

function handleSetTarget(context: RequestContext, payload: Uint8Array): Uint8Array {
  const [domainText, targetText] = strings(payload, 2);
  const id = introducedId(context, domainText);
  context.core.domain(id).targetId = introducedId(context, targetText);
  return OK;
}

function handleGetDomainPath({ session }: RequestContext, payload: Uint8Array): Uint8Array {
  const id = decimal(single(payload), MAX_DOMAIN_ID);
  return text(domainPath(id === DOMID_SELF ? session.domainId : id));
}

function handleIsDomainIntroduced({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const id = decimal(single(payload), MAX_DOMAIN_ID);
  const introduced = id === DOMID_SELF || id === 0 || core.introducedDomain(id) !== undefined;
  return text(introduced ? 'T' : 'F');
}

/** Anyone may ask what it may use itself; only the toolstack may ask of another. */
function handleGetFeature(context: RequestContext, payload: Uint8Array): Uint8Array {
  const { core, session } = context;
  const [domainText] = closedStrings(payload);
  if (domainText === undefined || domainText === '') {
    return text(String(session.privileged ? SUPPORTED_FEATURES : core.featuresOf(session.domainId)));
  }
  if (!session.privileged) throw new XsError('EACCES');
  return text(String(core.featuresOf(guestId(domainText))));
}

/** Only before the domain is introduced: it may rely on what it has seen. */
function handleSetFeature({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const [domainText, valueText] = strings(payload, 2);
  const id = guestId(domainText);
  const features = decimal(valueText, MAX_U32);
  if ((features & ~SUPPORTED_FEATURES) !== 0) throw new XsError('EINVAL');
  if (core.introducedDomain(id) !== undefined) throw new XsError('EBUSY');
  core.domain(id).features = features;
  return OK;
}

/** The last string given is the quota's name, one before it a domain. */
function quotaOf(core: StoreCore, names: readonly string[], create: boolean): [quota: Quota, name: QuotaName] {
  const name = names.at(-1);
  if (name === undefined || names.length > 2 || !isQuotaName(name)) throw new XsError('EINVAL');
  if (names.length === 1) return [core.quota, name];
  const id = guestId(names[0]);
  return [create ? core.domain(id).quota : core.quotaOf(id), name];
}

function handleGetQuota({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const names = closedStrings(payload);
  if (names.join('') === '') return text(QUOTA_NAMES.join(' '));
  const [quota, name] = quotaOf(core, names, false);
  return text(String(quota[name]));
}

function handleSetQuota({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const given = closedStrings(payload);
  const value = decimal(given.pop(), MAX_U32);
  const [quota, name] = quotaOf(core, given, true);
  quota[name] = value;
  return OK;
}

/** Commands about a store daemon's process mean nothing here; what remains is asking for help and for a check. */
function handleControl({ core }: RequestContext, payload: Uint8Array): Uint8Array {
  const [command] = closedStrings(payload);
  if (command === 'help') return text('Supported commands:\ncheck\nhelp');
  if (command !== 'check') throw new XsError('EINVAL');
  if (core.audit().length > 0) throw new XsError('EIO');
  return OK;
}

const REQUESTS: ReadonlyMap<number, Request> = new Map<number, Request>([
  [XS_TYPE.CONTROL, { handle: handleControl, privileged: true }],
  [XS_TYPE.DIRECTORY, { handle: handleDirectory }],
  [XS_TYPE.DIRECTORY_PART, { handle: handleDirectoryPart }],
  [XS_TYPE.READ, { handle: handleRead }],
  [XS_TYPE.WRITE, { handle: handleWrite }],
  [XS_TYPE.MKDIR, { handle: handleMkdir }],
  [XS_TYPE.RM, { handle: handleRm }],
  [XS_TYPE.GET_PERMS, { handle: handleGetPerms }],
  [XS_TYPE.SET_PERMS, { handle: handleSetPerms }],
  [XS_TYPE.WATCH, { handle: handleWatch }],
  [XS_TYPE.UNWATCH, { handle: handleUnwatch }],
  [XS_TYPE.RESET_WATCHES, { handle: handleResetWatches }],
  [XS_TYPE.TRANSACTION_START, { handle: handleTransactionStart }],
  [XS_TYPE.TRANSACTION_END, { handle: handleTransactionEnd }],
  [XS_TYPE.INTRODUCE, { handle: handleIntroduce, privileged: true }],
  [XS_TYPE.RELEASE, { handle: handleRelease, privileged: true }],
  [XS_TYPE.RESUME, { handle: handleResume, privileged: true }],
  [XS_TYPE.SET_TARGET, { handle: handleSetTarget, privileged: true }],
  [XS_TYPE.GET_DOMAIN_PATH, { handle: handleGetDomainPath }],
  [XS_TYPE.IS_DOMAIN_INTRODUCED, { handle: handleIsDomainIntroduced }],
  [XS_TYPE.GET_FEATURE, { handle: handleGetFeature }],
  [XS_TYPE.SET_FEATURE, { handle: handleSetFeature, privileged: true }],
  [XS_TYPE.GET_QUOTA, { handle: handleGetQuota, privileged: true }],
  [XS_TYPE.SET_QUOTA, { handle: handleSetQuota, privileged: true }],
]);
