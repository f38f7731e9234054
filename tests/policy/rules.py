"""Glance's rules, written down from its documentation: what `calotype.policy` is compared with."""

#: A check string and the rules that have it.
DEFAULTS = {
    "": ("default metadef_default "),
    "role:admin": ("context_is_admin "),
    "role:service or role:admin": ("service_api "),
    "rule:context_is_admin": (
        "metadef_admin publicize_image delete_image_location manage_image_cache copy_image list_cached_nodes "
        "tasks_api_access cache_image cache_list cache_delete cache_clean cache_prune "
    ),
    "rule:context_is_admin or (role:member and project_id:%(project_id)s and project_id:%(owner)s)": ("add_image "),
    "rule:context_is_admin or (role:member and project_id:%(project_id)s)": (
        "delete_image modify_image communitize_image upload_image set_image_location add_member delete_member "
        "deactivate reactivate "
    ),
    "rule:context_is_admin or (role:reader and (project_id:%(project_id)s or project_id:%(member_id)s or 'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s))": (
        "get_image "
    ),
    "rule:context_is_admin or (role:reader and project_id:%(project_id)s)": (
        "get_images get_image_location get_metadef_namespaces "
    ),
    "rule:context_is_admin or (role:member and (project_id:%(project_id)s or project_id:%(member_id)s or 'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s))": (
        "download_image download_from_store "
    ),
    "rule:service_api or (role:member and project_id:%(project_id)s and project_id:%(owner)s)": ("add_image_location "),
    "rule:service_api": ("fetch_image_location "),
    "rule:context_is_admin or role:reader and (project_id:%(project_id)s or project_id:%(member_id)s)": (
        "get_member get_members "
    ),
    "rule:context_is_admin or (role:member and project_id:%(member_id)s)": ("modify_member "),
    "rule:default": ("get_task get_tasks add_task modify_task "),
    "rule:context_is_admin or (role:reader and (project_id:%(project_id)s or 'public':%(visibility)s))": (
        "get_metadef_namespace get_metadef_object get_metadef_objects list_metadef_resource_types "
        "get_metadef_resource_type get_metadef_property get_metadef_properties get_metadef_tag "
        "get_metadef_tags "
    ),
    "rule:metadef_admin": (
        "modify_metadef_namespace add_metadef_namespace delete_metadef_namespace modify_metadef_object "
        "add_metadef_object delete_metadef_object add_metadef_resource_type_association "
        "remove_metadef_resource_type_association modify_metadef_property add_metadef_property "
        "remove_metadef_property modify_metadef_tag add_metadef_tag add_metadef_tags delete_metadef_tag "
        "delete_metadef_tags "
    ),
    "rule:context_is_admin or rule:service_api": ("stores_info_detail "),
}

#: What was or-ed to them before secure defaults, and the rules that had it.
FORMER = {
    "rule:default": (
        "add_image delete_image get_image get_images modify_image communitize_image download_image "
        "upload_image delete_image_location get_image_location set_image_location add_member delete_member "
        "get_member get_members modify_member deactivate reactivate get_task get_tasks add_task "
    ),
    "rule:metadef_default": (
        "get_metadef_namespace get_metadef_namespaces get_metadef_object get_metadef_objects "
        "list_metadef_resource_types get_metadef_resource_type get_metadef_property get_metadef_properties "
        "get_metadef_tag get_metadef_tags "
    ),
    "rule:manage_image_cache": ("cache_image cache_list cache_delete "),
    "rule:context_is_admin": ("stores_info_detail "),
}
