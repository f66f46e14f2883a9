// HYPERVISOR_xen_version: what the guest shows in /sys/hypervisor, and the features that it may use.

import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { array, u64, u8 } from '../abi/struct.ts';
import type { FieldType } from '../abi/struct.ts';
import {
  ERRNO, XENFEAT, XENVER, XEN_CAPABILITIES_INFO_LEN, XEN_CHANGESET_INFO_LEN, XEN_COMMANDLINE_LEN,
  XEN_EXTRAVERSION_LEN, xenCompileInfo, xenFeatureInfo,
} from '../abi/xen.ts';
import type { Environment } from './environment.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

/** The version of Xen's ABI that guests see. */
const XEN_MAJOR = 4;
const XEN_MINOR = 17;
const EXTRAVERSION = '.0-zazen';
const CAPABILITIES = 'xen-3.0-aarch64';
const FEATURES = (1 << XENFEAT.auto_translated_physmap) | (1 << XENFEAT.not_direct_mapped);

export function xenVersion({ guest }: Environment, caller: Caller, args: HypercallArguments): number {
  const va = args.u64(1);
  const answer = (type: FieldType, fill: (structure: GuestStruct) => void): number => {
    const structure = GuestStruct.blank(type);
    fill(structure);
    return structure.write(guest, caller, va, true) ? 0 : -ERRNO.EFAULT;
  };
  const answerText = (sizeBytes: number, text: string) =>
    answer(array(u8, sizeBytes), (structure) => structure.setText(0, sizeBytes, text));
  switch (args.u32(0)) {
    case XENVER.version: return (XEN_MAJOR << 16) | XEN_MINOR;
    case XENVER.extraversion: return answerText(XEN_EXTRAVERSION_LEN, EXTRAVERSION);
    case XENVER.compile_info: return answer(xenCompileInfo, (info) => {
      info.setText(xenCompileInfo.at.compiler, 64, 'TypeScript');
      info.setText(xenCompileInfo.at.compile_by, 16, 'zazen');
    });
    case XENVER.capabilities: return answerText(XEN_CAPABILITIES_INFO_LEN, CAPABILITIES);
    case XENVER.changeset: return answerText(XEN_CHANGESET_INFO_LEN, '');
    case XENVER.commandline: return answerText(XEN_COMMANDLINE_LEN, '');
    // Where the hypervisor starts in the virtual address space: nowhere.
    case XENVER.platform_parameters: return answer(u64, () => undefined);
    case XENVER.get_features: {
      const info = GuestStruct.readToAnswer(guest, caller, va, xenFeatureInfo);
      if (info === undefined) return -ERRNO.EFAULT;
      const submap = info.u32(xenFeatureInfo.at.submap_idx);
      info.set32(xenFeatureInfo.at.submap, submap === 0 ? FEATURES : 0);
      return submap > 0 ? -ERRNO.EINVAL : info.write(guest, caller, va) ? 0 : -ERRNO.EFAULT;
    }
    case XENVER.pagesize: return FRAME_BYTES;
    case XENVER.guest_handle: return answer(array(u8, 16), (handle) => {
      const at = caller.domain.address + DOMAIN.at.handle;
      for (let i = 0; i < 16; i++) handle.set8(i, caller.domain.memory.u8[at + i]!);
    });
    case XENVER.build_id: return -ERRNO.ENODATA;
    default: return -ERRNO.ENOSYS;
  }
}
