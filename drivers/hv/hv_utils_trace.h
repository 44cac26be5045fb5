/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of the integration services. Strings come from Rust: they have a
 * length, and no terminating NUL. The events copy them to arrays, because
 * bpftrace 0.23 of Debian 13 looks for __string() at a wrong offset.
 */

#ifndef _HV_UTILS_TRACE_COPY
#define _HV_UTILS_TRACE_COPY

#include <linux/minmax.h>
#include <linux/string.h>

/* Copies a string to an array, and truncates the string if it does not fit. */
#define hv_utils_copy(to, from, len) \
	__hv_utils_copy((to), sizeof(to), (from), (len))

static inline void __hv_utils_copy(char *to, size_t room, const char *from, size_t len)
{
	len = min(len, room - 1);
	memcpy(to, from, len);
	memset(to + len, 0, room - len);
}

#endif /* _HV_UTILS_TRACE_COPY */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM hv_utils

#if !defined(_HV_UTILS_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _HV_UTILS_TRACE_H

#include <linux/tracepoint.h>

/*
 * The answer to a negotiation: the message version that was agreed on. Both
 * numbers are 0 if host and guest have no version in common.
 */
TRACE_EVENT(hv_utils_negotiation,
	    TP_PROTO(const char *service, size_t service_len, u16 major, u16 minor),
	    TP_ARGS(service, service_len, major, minor),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __field(u16, major)
			     __field(u16, minor)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   __entry->major = major;
			   __entry->minor = minor;),
	    TP_printk("service=%s version=%u.%u", __entry->service, __entry->major,
		      __entry->minor)
);

/*
 * A message from the host that gets an answer, at once or later. The length is
 * that of the packet's payload, in bytes.
 */
TRACE_EVENT(hv_utils_request,
	    TP_PROTO(const char *service, size_t service_len, u64 transaction, u16 type,
		     size_t len),
	    TP_ARGS(service, service_len, transaction, type, len),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __field(u64, transaction)
			     __field(u32, len)
			     __field(u16, type)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   __entry->transaction = transaction;
			   __entry->len = len;
			   __entry->type = type;),
	    TP_printk("service=%s transaction=%llu type=%u len=%u", __entry->service,
		      __entry->transaction, __entry->type, __entry->len)
);

/*
 * The answer to a message. The latency is the time since the service has
 * accepted the message, in nanoseconds; 0 if the event was enabled after that.
 * The time in the ring does not count.
 */
TRACE_EVENT(hv_utils_reply,
	    TP_PROTO(const char *service, size_t service_len, u64 transaction, u32 status,
		     u64 latency, bool sent),
	    TP_ARGS(service, service_len, transaction, status, latency, sent),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __field(u64, transaction)
			     __field(u64, latency)
			     __field(u32, status)
			     __field(bool, sent)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   __entry->transaction = transaction;
			   __entry->latency = latency;
			   __entry->status = status;
			   __entry->sent = sent;),
	    TP_printk("service=%s transaction=%llu status=%#x latency=%llu sent=%u",
		      __entry->service, __entry->transaction, __entry->status, __entry->latency,
		      __entry->sent)
);

/* The service asks the daemon. The length is that of the message, in bytes. */
TRACE_EVENT(hv_utils_asked,
	    TP_PROTO(const char *service, size_t service_len, size_t len),
	    TP_ARGS(service, service_len, len),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __field(u32, len)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   __entry->len = len;),
	    TP_printk("service=%s len=%u", __entry->service, __entry->len)
);

/*
 * The outcome of a question to the daemon: "answered", "gone", "timed out", or
 * "given up" if the host has negotiated again or the channel was closed.
 */
TRACE_EVENT(hv_utils_answered,
	    TP_PROTO(const char *service, size_t service_len, const char *outcome,
		     size_t outcome_len),
	    TP_ARGS(service, service_len, outcome, outcome_len),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __array(char, outcome, 16)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   hv_utils_copy(__entry->outcome, outcome, outcome_len);),
	    TP_printk("service=%s outcome=%s", __entry->service, __entry->outcome)
);

/* A packet that gets no answer. */
TRACE_EVENT(hv_utils_ignored,
	    TP_PROTO(const char *service, size_t service_len, const char *reason,
		     size_t reason_len),
	    TP_ARGS(service, service_len, reason, reason_len),
	    TP_STRUCT__entry(__array(char, service, 16)
			     __array(char, reason, 16)),
	    TP_fast_assign(hv_utils_copy(__entry->service, service, service_len);
			   hv_utils_copy(__entry->reason, reason, reason_len);),
	    TP_printk("service=%s reason=%s", __entry->service, __entry->reason)
);

/* A file system was frozen for a backup. */
TRACE_EVENT(hv_utils_frozen,
	    TP_PROTO(const char *device, size_t device_len),
	    TP_ARGS(device, device_len),
	    TP_STRUCT__entry(__array(char, device, 32)),
	    TP_fast_assign(hv_utils_copy(__entry->device, device, device_len);),
	    TP_printk("device=%s", __entry->device)
);

/*
 * A file system was thawed, or failed to thaw with an error number. The cause
 * says why, or who has thawed the file system.
 */
TRACE_EVENT(hv_utils_thawed,
	    TP_PROTO(const char *device, size_t device_len, const char *cause, size_t cause_len,
		     int error),
	    TP_ARGS(device, device_len, cause, cause_len, error),
	    TP_STRUCT__entry(__array(char, device, 32)
			     __array(char, cause, 48)
			     __field(int, error)),
	    TP_fast_assign(hv_utils_copy(__entry->device, device, device_len);
			   hv_utils_copy(__entry->cause, cause, cause_len);
			   __entry->error = error;),
	    TP_printk("device=%s error=%d cause=%s", __entry->device, __entry->error,
		      __entry->cause)
);

#endif /* _HV_UTILS_TRACE_H */

/* This part must be outside the include guard. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE hv_utils_trace
#include <trace/define_trace.h>
