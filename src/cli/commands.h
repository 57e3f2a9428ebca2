/* The commands, one file each. */
#ifndef SENDENSE_CLI_COMMANDS_H
#define SENDENSE_CLI_COMMANDS_H

#include "cli.h"

extern const struct command command_backup, command_restore, command_ls, command_verify,
	command_serve, command_export, command_copy, command_measure, command_repo_init,
	command_repo_info, command_repo_check, command_repo_reindex, command_doctor,
	command_version, command_completion, command_replicate, command_prune, command_protect,
	command_hub_init, command_status, command_hub_run, command_hub_check_config,
	command_hub_export, command_hub_import, command_node_init, command_node_run,
	command_node_check_config, command_node_enrol, command_tunnel_run,
	command_tunnel_sshd_config, command_vmware_ls, command_vmware_info, command_vmware_cbt,
	command_vmware_debts, command_vmware_collect;

/* Hidden. */
extern const struct command command_nbd_service;

#endif
